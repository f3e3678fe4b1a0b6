//! Rows as Rust types, through serde: structs by the names of columns, tuples by their positions,
//! a single value from a row of one column.
//!
//! | SQLite | Rust |
//! |---|---|
//! | NULL | `Option`, `()` |
//! | INTEGER | integers (checked), floats, `bool` from 0 and 1 |
//! | REAL | floats |
//! | TEXT | `String`, enums of units by name, bytes |
//! | BLOB | `Vec<u8>` and other byte buffers |
//! | of a BOOLEAN column | `bool`, integers |
//! | of a date column | as dqlite sends it: text, or seconds since 1970 |
//!
//! *Invariant*: no conversion loses anything, and no error holds a value.

use std::fmt;

use serde::de::value::{SeqDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};

use super::error::DriverError;
use super::rows::Rows;
use crate::wire::Value;

/// One row of a result.
#[derive(Clone, Copy, Debug)]
pub struct Row<'r> {
    columns: &'r [String],
    values: &'r [Value],
    /// From 1.
    number: usize,
}

/// A column's place: its position from 0, or its name.
pub trait Column: Copy {
    /// The position among `columns`.
    fn position(self, columns: &[String]) -> Option<usize>;
    /// As errors call it.
    fn describe(self) -> String;
}

impl Column for usize {
    fn position(self, columns: &[String]) -> Option<usize> {
        (self < columns.len()).then_some(self)
    }

    fn describe(self) -> String {
        self.to_string()
    }
}

impl Column for &str {
    fn position(self, columns: &[String]) -> Option<usize> {
        columns.iter().position(|name| name == self)
    }

    fn describe(self) -> String {
        format!("`{self}`")
    }
}

impl<'r> Row<'r> {
    /// The columns' names.
    pub fn columns(&self) -> &'r [String] {
        self.columns
    }

    /// The values as they came.
    pub fn values(&self) -> &'r [Value] {
        self.values
    }

    /// One column, by position or name, as a `T`.
    ///
    /// # Errors
    ///
    /// [`DriverError::Row`]: there is no such column, or it holds no `T`.
    pub fn get<T: Deserialize<'r>>(&self, column: impl Column) -> Result<T, DriverError> {
        let at = column.position(self.columns);
        let found = at.and_then(|at| Some((self.columns.get(at)?, self.values.get(at)?)));
        let Some((name, value)) = found else {
            let what = format!("there is no column {}", column.describe());
            return Err(self.error(Mismatch::new(what)));
        };
        T::deserialize(ValueDe(value))
            .map_err(|mismatch| self.error(mismatch.in_column(name, value)))
    }

    /// The whole row as a `T`: a struct by names, a tuple by positions, or the value of the only
    /// column.
    ///
    /// # Errors
    ///
    /// [`DriverError::Row`]: it is no `T`.
    pub fn to<T: Deserialize<'r>>(&self) -> Result<T, DriverError> {
        T::deserialize(RowDe(*self)).map_err(|mismatch| self.error(mismatch))
    }

    fn error(&self, mismatch: Mismatch) -> DriverError {
        let problem = if mismatch.placed {
            mismatch.text
        } else {
            format!("{} (its columns are {})", mismatch.text, self.columns.join(", "))
        };
        DriverError::Row { row: self.number, problem }
    }
}

impl Rows {
    /// The rows, one by one.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let columns = self.columns.as_slice();
        (1..).zip(&self.rows).map(move |(number, values)| Row { columns, values, number })
    }

    /// All rows as values of a type; see [`Row::to`].
    ///
    /// # Errors
    ///
    /// [`DriverError::Row`]: one of them is no `T`.
    pub fn to<T: DeserializeOwned>(&self) -> Result<Vec<T>, DriverError> {
        self.iter().map(|row| row.to()).collect()
    }

    /// All rows through a function.
    ///
    /// # Errors
    ///
    /// The first that the function gives.
    pub fn map<T>(
        &self,
        row: impl FnMut(Row<'_>) -> Result<T, DriverError>,
    ) -> Result<Vec<T>, DriverError> {
        self.iter().map(row).collect()
    }
}

/// Why a value is not of a type.
#[derive(Debug)]
struct Mismatch {
    text: String,
    /// The text says which column.
    placed: bool,
}

impl Mismatch {
    fn new(text: String) -> Mismatch {
        Mismatch { text, placed: false }
    }

    fn in_column(self, name: &str, value: &Value) -> Mismatch {
        if self.placed {
            return self;
        }
        let kind = kind(value);
        Mismatch { text: format!("column `{name}` holds {kind}: {}", self.text), placed: true }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "NULL",
        Value::Integer(_) => "INTEGER",
        Value::Float(_) => "REAL",
        Value::Text(_) => "TEXT",
        Value::Blob(_) => "BLOB",
        Value::Boolean(_) => "BOOLEAN",
        Value::UnixTime(_) | Value::Iso8601(_) => "a date",
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(text: T) -> Mismatch {
        Mismatch::new(text.to_string())
    }

    // serde's own texts hold the value.
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Mismatch {
        Mismatch::new(format!("expected {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Mismatch {
        Mismatch::new(format!("out of the range of what is expected: {expected}"))
    }

    fn unknown_variant(_: &str, variants: &'static [&'static str]) -> Mismatch {
        Mismatch::new(format!("expected one of {}", variants.join(", ")))
    }

    fn missing_field(field: &'static str) -> Mismatch {
        Mismatch::new(format!("there is no column `{field}`"))
    }

    fn duplicate_field(field: &'static str) -> Mismatch {
        Mismatch::new(format!("there are several columns `{field}`"))
    }
}

struct ValueDe<'r>(&'r Value);

impl<'r> Deserializer<'r> for ValueDe<'r> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Integer(value) | Value::UnixTime(value) => visitor.visit_i64(*value),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) | Value::Iso8601(text) => match text.as_str() {
                Some(text) => visitor.visit_borrowed_str(text),
                None => visitor.visit_borrowed_bytes(text.as_bytes()),
            },
            Value::Blob(bytes) => visitor.visit_borrowed_bytes(bytes),
        }
    }

    fn deserialize_bool<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Integer(value @ (0 | 1)) => visitor.visit_bool(*value == 1),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_i64<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Boolean(value) => visitor.visit_i64(i64::from(*value)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_i8<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i16<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i32<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u8<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u16<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u32<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u64<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_option<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// Bytes may be wanted as a list of them.
    fn deserialize_seq<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Blob(bytes) => visitor.visit_seq(SeqDeserializer::new(bytes.iter().copied())),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'r>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'r>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Text(text) if let Some(name) = text.as_str() => visitor.visit_enum(Unit(name)),
            _ => Err(Mismatch::new("expected the name of a variant as TEXT".to_owned())),
        }
    }

    forward_to_deserialize_any! {
        <V: Visitor<'r>>
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map
        struct identifier ignored_any
    }
}

/// The name of a variant without fields.
struct Unit<'r>(&'r str);

impl<'r> EnumAccess<'r> for Unit<'r> {
    type Error = Mismatch;
    type Variant = <StrDeserializer<'r, Mismatch> as EnumAccess<'r>>::Variant;

    fn variant_seed<S: DeserializeSeed<'r>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), Mismatch> {
        let name: StrDeserializer<'r, Mismatch> = self.0.into_deserializer();
        name.variant_seed(seed)
    }
}

#[derive(Clone, Copy)]
struct RowDe<'r>(Row<'r>);

impl<'r> RowDe<'r> {
    fn fields(self) -> Fields<'r> {
        Fields { columns: self.0.columns, values: self.0.values, at: 0 }
    }

    /// The value of the only column.
    fn single<V: Visitor<'r>>(
        self,
        visit: impl FnOnce(ValueDe<'r>, V) -> Result<V::Value, Mismatch>,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match (self.0.columns, self.0.values) {
            ([name], [value]) => {
                visit(ValueDe(value), visitor).map_err(|mismatch| mismatch.in_column(name, value))
            }
            _ => Err(Mismatch::new("a single value needs a row of one column".to_owned())),
        }
    }

    fn tuple<V: Visitor<'r>>(self, len: usize, visitor: V) -> Result<V::Value, Mismatch> {
        let columns = self.0.columns.len();
        if len != columns {
            return Err(Mismatch::new(format!("a row of {columns} columns is no tuple of {len}")));
        }
        visitor.visit_seq(self.fields())
    }
}

macro_rules! single {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            self.single(|value, visitor| value.$method(visitor), visitor)
        }
    )*};
}

impl<'r> Deserializer<'r> for RowDe<'r> {
    type Error = Mismatch;

    single! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_u128 deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf deserialize_option
        deserialize_identifier
    }

    fn deserialize_any<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_map(self.fields())
    }

    fn deserialize_unit<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'r>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'r>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'r>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_seq(self.fields())
    }

    fn deserialize_tuple<V: Visitor<'r>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'r>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.tuple(len, visitor)
    }

    fn deserialize_enum<V: Visitor<'r>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.single(|value, visitor| value.deserialize_enum(name, variants, visitor), visitor)
    }

    forward_to_deserialize_any! { <V: Visitor<'r>> map struct ignored_any }
}

/// The columns of a row, one after the other.
struct Fields<'r> {
    columns: &'r [String],
    values: &'r [Value],
    at: usize,
}

impl<'r> Fields<'r> {
    fn take<S: DeserializeSeed<'r>>(&mut self, seed: S) -> Result<Option<S::Value>, Mismatch> {
        let (Some(name), Some(value)) = (self.columns.get(self.at), self.values.get(self.at))
        else {
            return Ok(None);
        };
        self.at += 1;
        let taken = seed.deserialize(ValueDe(value));
        taken.map(Some).map_err(|mismatch| mismatch.in_column(name, value))
    }
}

impl<'r> SeqAccess<'r> for Fields<'r> {
    type Error = Mismatch;

    fn next_element_seed<S: DeserializeSeed<'r>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Mismatch> {
        self.take(seed)
    }
}

impl<'r> MapAccess<'r> for Fields<'r> {
    type Error = Mismatch;

    fn next_key_seed<S: DeserializeSeed<'r>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Mismatch> {
        let Some(name) = self.columns.get(self.at) else { return Ok(None) };
        let name: StrDeserializer<'_, Mismatch> = name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'r>>(&mut self, seed: S) -> Result<S::Value, Mismatch> {
        let value = self.take(seed)?;
        value.ok_or_else(|| Mismatch::new("a row has fewer values than columns".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::params;

    fn rows(columns: &[&str], rows: Vec<Vec<Value>>) -> Rows {
        Rows { columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows }
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Item {
        id: u32,
        name: Option<String>,
        price: f64,
        #[serde(default)]
        sold: bool,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Tea,
        Salt,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Id(i64);

    #[test]
    fn structs_by_name_and_tuples_by_position() {
        let items = rows(
            &["price", "id", "name", "other", "sold"],
            vec![params![2.5, 1, "tea", 9, 1], params![3, 2, None::<i64>, 9, false]],
        );
        let tea = Item { id: 1, name: Some("tea".into()), price: 2.5, sold: true };
        let other = Item { id: 2, name: None, price: 3.0, sold: false };
        assert_eq!(items.to::<Item>().unwrap(), [tea, other]);
        let pairs = rows(&["a", "b", "c"], vec![params![1, "salt", vec![1_u8, 2]]]);
        let expected = [(Id(1), Kind::Salt, vec![1_u8, 2])];
        assert_eq!(pairs.to::<(Id, Kind, Vec<u8>)>().unwrap(), expected);
        assert_eq!(rows(&["n"], vec![params![7]]).to::<i64>().unwrap(), [7]);
        assert_eq!(rows(&["n"], vec![params![None::<i64>]]).to::<Option<Id>>().unwrap(), [None]);
        let maps = rows(&["a", "b"], vec![params![1, 2]]).to::<HashMap<String, i64>>().unwrap();
        assert_eq!(maps[0]["b"], 2);
        let names = pairs.map(|row| Ok((row.get::<i64>("a")?, row.get::<Kind>(1)?))).unwrap();
        assert_eq!(names, [(1, Kind::Salt)]);
    }

    #[test]
    fn an_error_names_row_column_and_types() {
        let two = rows(&["id", "name"], vec![params![1, "tea"], params!["secret", "salt"]]);
        let text = |error: DriverError| error.to_string();
        assert_eq!(
            text(two.to::<(i64, String)>().unwrap_err()),
            "row 2: column `id` holds TEXT: expected i64"
        );
        assert_eq!(
            text(two.to::<Item>().unwrap_err()),
            "row 1: there is no column `price` (its columns are id, name)"
        );
        assert_eq!(
            text(two.to::<(i64,)>().unwrap_err()),
            "row 1: a row of 2 columns is no tuple of 1 (its columns are id, name)"
        );
        assert_eq!(
            text(two.to::<i64>().unwrap_err()),
            "row 1: a single value needs a row of one column (its columns are id, name)"
        );
        let large = rows(&["n"], vec![params![300], params![-1]]);
        assert_eq!(
            text(large.to::<u8>().unwrap_err()),
            "row 1: column `n` holds INTEGER: out of the range of what is expected: u8"
        );
        assert!(large.to::<u64>().is_err());
        let kinds = rows(&["k"], vec![params!["sugar"]]);
        assert_eq!(
            text(kinds.to::<Kind>().unwrap_err()),
            "row 1: column `k` holds TEXT: expected one of tea, salt"
        );
        let row = two.iter().next().unwrap();
        assert_eq!(
            text(row.get::<i64>("nmae").unwrap_err()),
            "row 1: there is no column `nmae` (its columns are id, name)"
        );
        assert_eq!(
            text(row.get::<i64>(1).unwrap_err()),
            "row 1: column `name` holds TEXT: expected i64"
        );
    }
}
