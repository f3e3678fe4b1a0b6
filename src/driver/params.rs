//! From Rust values to parameters: `From` for the usual types and the [`params!`](crate::params)
//! macro.
//!
//! *Invariant*: no conversion loses anything; a type that could (u64) has none.

use crate::wire::{Text, Value};

/// Builds the `Vec<Value>` of a statement's parameters: `params![1, "two", None::<i64>]`.
#[macro_export]
macro_rules! params {
    () => {
        Vec::<$crate::wire::Value>::new()
    };
    ($($value:expr),+ $(,)?) => {
        vec![$($crate::wire::Value::from($value)),*]
    };
}

macro_rules! from_integers {
    ($($integer:ty),*) => {$(
        impl From<$integer> for Value {
            fn from(value: $integer) -> Value {
                Value::Integer(i64::from(value))
            }
        }
    )*};
}

from_integers!(i8, i16, i32, i64, u8, u16, u32);

impl From<f64> for Value {
    fn from(value: f64) -> Value {
        Value::Float(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Value {
        Value::Float(f64::from(value))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Boolean(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Text(Text::from(value))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::Text(Text::from(value))
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Value {
        Value::from(value.as_str())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Value {
        Value::Blob(value)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Value {
        Value::Blob(value.to_vec())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, T::into)
    }
}

#[cfg(test)]
mod tests {
    use crate::wire::Value;

    #[test]
    fn values_of_all_kinds() {
        let values = params![1, "two", 3.5, true, None::<i64>, Some("x"), vec![0_u8, 1]];
        assert_eq!(values[0], Value::Integer(1));
        assert_eq!(values[1], Value::Text("two".into()));
        assert_eq!(values[2], Value::Float(3.5));
        assert_eq!(values[3], Value::Boolean(true));
        assert_eq!(values[4], Value::Null);
        assert_eq!(values[5], Value::Text("x".into()));
        assert_eq!(values[6], Value::Blob(vec![0, 1]));
        assert!(params![].is_empty());
    }
}
