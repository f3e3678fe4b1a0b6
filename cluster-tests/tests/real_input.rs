//! A whole script, as one finds them: a shop of 11 tables and 15,607 rows in 600 KB of SQL, loaded
//! by `quire sql --file`, read on every member, and the files that are left behind.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use cluster_tests::Cluster;

/// The tables and their rows.
const TABLES: [(&str, usize); 11] = [
    ("Artist", 275),
    ("Album", 347),
    ("Employee", 8),
    ("Customer", 59),
    ("Genre", 25),
    ("MediaType", 5),
    ("Track", 3503),
    ("Invoice", 412),
    ("InvoiceLine", 2240),
    ("Playlist", 18),
    ("PlaylistTrack", 8715),
];

const SCHEMA: &str = "
CREATE TABLE [Artist] ([ArtistId] INTEGER NOT NULL, [Name] NVARCHAR(120),
    CONSTRAINT [PK_Artist] PRIMARY KEY ([ArtistId]));
CREATE TABLE [Album] ([AlbumId] INTEGER NOT NULL PRIMARY KEY, [Title] NVARCHAR(160) NOT NULL,
    [ArtistId] INTEGER NOT NULL REFERENCES [Artist] ([ArtistId])
        ON DELETE NO ACTION ON UPDATE NO ACTION);
CREATE TABLE [Employee] ([EmployeeId] INTEGER NOT NULL PRIMARY KEY, [Name] NVARCHAR(20) NOT NULL,
    [ReportsTo] INTEGER REFERENCES [Employee] ([EmployeeId]), [BirthDate] DATETIME,
    [Notes] TEXT);
CREATE TABLE [Customer] ([CustomerId] INTEGER NOT NULL PRIMARY KEY, [Name] TEXT NOT NULL,
    [Company] TEXT, [Email] NVARCHAR(60) NOT NULL UNIQUE,
    [SupportRepId] INTEGER REFERENCES [Employee] ([EmployeeId]));
CREATE TABLE \"Genre\" (\"GenreId\" INTEGER NOT NULL PRIMARY KEY, \"Name\" NVARCHAR(120));
CREATE TABLE `MediaType` (`MediaTypeId` INTEGER NOT NULL PRIMARY KEY, `Name` NVARCHAR(120));
CREATE TABLE [Track] ([TrackId] INTEGER NOT NULL PRIMARY KEY, [Name] NVARCHAR(200) NOT NULL,
    [AlbumId] INTEGER REFERENCES [Album] ([AlbumId]),
    [MediaTypeId] INTEGER NOT NULL REFERENCES [MediaType] ([MediaTypeId]),
    [GenreId] INTEGER REFERENCES [Genre] ([GenreId]), [Composer] NVARCHAR(220),
    [Milliseconds] INTEGER NOT NULL, [UnitPrice] NUMERIC(10,2) NOT NULL CHECK ([UnitPrice] > 0));
CREATE TABLE [Invoice] ([InvoiceId] INTEGER NOT NULL PRIMARY KEY,
    [CustomerId] INTEGER NOT NULL REFERENCES [Customer] ([CustomerId]),
    [InvoiceDate] DATETIME NOT NULL, [BillingAddress] NVARCHAR(70), [Total] NUMERIC(10,2));
CREATE TABLE [InvoiceLine] ([InvoiceLineId] INTEGER NOT NULL PRIMARY KEY,
    [InvoiceId] INTEGER NOT NULL REFERENCES [Invoice] ([InvoiceId]),
    [TrackId] INTEGER NOT NULL REFERENCES [Track] ([TrackId]), [Quantity] INTEGER NOT NULL);
CREATE TABLE [Playlist] ([PlaylistId] INTEGER NOT NULL PRIMARY KEY, [Name] NVARCHAR(120));
CREATE TABLE [PlaylistTrack] ([PlaylistId] INTEGER NOT NULL REFERENCES [Playlist] ([PlaylistId]),
    [TrackId] INTEGER NOT NULL REFERENCES [Track] ([TrackId]),
    CONSTRAINT [PK_PlaylistTrack] PRIMARY KEY ([PlaylistId], [TrackId])) WITHOUT ROWID;
CREATE INDEX [IFK_AlbumArtistId] ON [Album] ([ArtistId]);
CREATE INDEX [IFK_TrackAlbumId] ON [Track] ([AlbumId]);
CREATE INDEX [IFK_TrackGenreId] ON [Track] ([GenreId]) WHERE [Composer] IS NOT NULL;
CREATE INDEX [IFK_InvoiceCustomerId] ON [Invoice] ([CustomerId], [InvoiceDate] DESC);
CREATE INDEX [IFK_InvoiceLineTrackId] ON [InvoiceLine] ([TrackId]);
CREATE INDEX [IFK_PlaylistTrackTrackId] ON [PlaylistTrack] ([TrackId]);
CREATE TRIGGER [NoPast] BEFORE INSERT ON [Invoice] WHEN NEW.[InvoiceDate] < '1970' BEGIN
    SELECT RAISE(ABORT, 'too long ago; really');
END;
";

/// The same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }

    /// Some words, with what is hard on those who cut scripts into statements.
    fn words(&mut self, count: usize) -> String {
        const WORDS: [&str; 12] = [
            "For",
            "Those",
            "About",
            "Rock",
            "Don''t",
            "Stop;",
            "Größe",
            "-- no",
            "/* nor",
            "日本",
            "\"quoted\"",
            "\n",
        ];
        let words: Vec<&str> = (0..count).map(|_| WORDS[self.below(WORDS.len())]).collect();
        format!("'{}'", words.join(" "))
    }

    /// The words, or NULL once in a while.
    fn perhaps(&mut self, count: usize) -> String {
        if self.below(5) == 0 { "NULL".to_owned() } else { self.words(count) }
    }

    fn date(&mut self) -> String {
        let (year, month, day) = (2009 + self.below(5), 1 + self.below(12), 1 + self.below(28));
        format!("'{year}-{month:02}-{day:02} 00:00:00'")
    }
}

/// The values of row `id`, from 1, of a table.
fn row(table: &str, id: usize, n: &mut Numbers) -> String {
    match table {
        "Artist" | "Genre" | "MediaType" | "Playlist" => format!("{id}, {}", n.perhaps(2)),
        "Album" => format!("{id}, {}, {}", n.words(4), 1 + n.below(275)),
        "Employee" => {
            let boss = if id == 1 { "NULL".to_owned() } else { (id / 2).to_string() };
            format!("{id}, {}, {boss}, {}, {}", n.words(2), n.date(), n.perhaps(300))
        }
        "Customer" => format!(
            "{id}, {}, {}, 'c{id}@example.com', {}",
            n.words(2),
            n.perhaps(3),
            1 + n.below(8)
        ),
        "Track" => format!(
            "{id}, {}, {}, {}, {}, {}, {}, 0.99",
            n.words(4),
            1 + n.below(347),
            1 + n.below(5),
            1 + n.below(25),
            n.perhaps(5),
            1000 + n.below(5_000_000)
        ),
        "Invoice" => {
            let (customer, date, address) = (1 + n.below(59), n.date(), n.perhaps(4));
            format!("{id}, {customer}, {date}, {address}, {}.98", n.below(30))
        }
        "InvoiceLine" => {
            format!("{id}, {}, {}, {}", 1 + n.below(412), 1 + n.below(3503), 1 + n.below(3))
        }
        // Each pair once.
        _ => format!("{}, {}", 1 + (id - 1) / 500, 1 + (id - 1) % 500 * 7),
    }
}

/// The script.
fn script() -> Result<String> {
    let mut script = String::from("/* A shop; of music. */\n-- It's generated;\n");
    for (table, _) in TABLES.iter().rev() {
        writeln!(script, "DROP TABLE IF EXISTS [{table}];\n")?;
    }
    script.push_str(SCHEMA);
    let mut numbers = Numbers(7);
    for (table, count) in TABLES {
        for id in 1..=count {
            let values = row(table, id, &mut numbers);
            let begin = if id % 1000 == 1 {
                format!("INSERT INTO [{table}] VALUES\n")
            } else {
                String::new()
            };
            let end = if id % 1000 == 0 || id == count { ";\n\n" } else { ",\n" };
            write!(script, "{begin}    ({values}){end}")?;
        }
    }
    Ok(script)
}

fn printed(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout.clone())?)
}

/// A query that gives the rows of all tables, and what it has to give.
fn counts() -> (String, String) {
    let parts: Vec<String> =
        TABLES.iter().map(|(table, _)| format!("(SELECT count(*) FROM {table})")).collect();
    let expected: Vec<String> = TABLES.iter().map(|(_, count)| count.to_string()).collect();
    (format!("SELECT {}", parts.join(" || ' ' || ")), expected.join(" "))
}

/// The file by SQLite's own means: the library with its default VFS, and the program.
fn check_file(path: &Path) -> Result<()> {
    let (sql, expected) = counts();
    let file = rusqlite::Connection::open(path)?;
    let ok: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    assert_eq!(ok, "ok");
    assert_eq!(file.query_row(&sql, [], |row| row.get::<_, String>(0))?, expected);
    let keys: i64 =
        file.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))?;
    assert_eq!(keys, 0);
    match Command::new("sqlite3").arg(path).args(["PRAGMA integrity_check", &sql]).output() {
        Ok(output) => assert_eq!(printed(&output)?, format!("ok\n{expected}\n")),
        Err(error) => eprintln!("no sqlite3 here ({error}): the library alone has looked"),
    }
    Ok(())
}

#[tokio::test]
async fn a_script_of_600_kb_loads_and_every_member_has_the_same_ordinary_file() -> Result<()> {
    let script = script()?;
    assert_eq!(TABLES.iter().map(|(_, count)| count).sum::<usize>(), 15_607);
    ensure!((500_000..900_000).contains(&script.len()), "{} bytes", script.len());
    let cluster = Cluster::start(3).await?;
    let path = cluster.dir(1).with_file_name("shop.sql");
    std::fs::write(&path, &script)?;
    let path = path.to_str().context("a path that is text")?;
    printed(&cluster.quire(&["sql", "shop", "--file", path])?)?;

    let (sql, expected) = counts();
    let csv = ["sql", "--mode", "csv"];
    let through_the_leader = cluster.quire(&[&csv[..], &["shop", &sql]].concat())?;
    assert_eq!(printed(&through_the_leader)?.lines().nth(1), Some(expected.as_str()));
    printed(&cluster.quire(&["digest", "shop", "--deep"])?)?;
    for id in 1..=3 {
        let local = [&csv[..], &["--read", "local", "shop", &sql]].concat();
        let rows = printed(&cluster.quire_at(id, &local)?)?;
        assert_eq!(rows.lines().nth(1), Some(expected.as_str()), "on node {id}");
    }

    cluster.checkpoint("shop").await?;
    let file = |id: usize, name: &str| cluster.dir(id).join("databases").join(name);
    let (first, sums) = (std::fs::read(file(1, "shop.db"))?, std::fs::read(file(1, "shop.sum"))?);
    for id in 1..=3 {
        check_file(&file(id, "shop.db")).with_context(|| format!("node {id}"))?;
        ensure!(std::fs::read(file(id, "shop.db"))? == first, "node {id} has another file");
        ensure!(std::fs::read(file(id, "shop.sum"))? == sums, "node {id} has other sums");
    }
    printed(&cluster.quire(&["digest", "shop", "--deep"])?)?;
    Ok(())
}

/// A statement in the middle of a script fails: what was before stays, nothing after it runs, and
/// the exit code and SQLite's own message say so.
#[tokio::test]
async fn a_script_that_fails_in_the_middle_says_where_and_stops() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let path = cluster.dir(1).with_file_name("bad.sql");
    std::fs::write(
        &path,
        "CREATE TABLE t(a UNIQUE);\nINSERT INTO t VALUES(1);\n\
        INSERT INTO t VALUES(1);\nINSERT INTO t VALUES(2);\n",
    )?;
    let path = path.to_str().context("a path that is text")?;
    let output = cluster.quire(&["sql", "bad", "--file", path])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr)?;
    ensure!(said.contains("UNIQUE constraint failed: t.a"), "{said}");
    let rows = printed(&cluster.quire(&["sql", "--mode", "csv", "bad", "SELECT a FROM t"])?)?;
    assert_eq!(rows.lines().collect::<Vec<_>>(), ["a", "1"]);
    Ok(())
}
