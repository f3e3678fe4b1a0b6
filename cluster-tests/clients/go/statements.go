package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/canonical/go-dqlite/driver"
)

// Every kind of value there and back, with and without a declared type.
func types(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, `CREATE TABLE kinds(id INTEGER PRIMARY KEY, i INTEGER, f REAL,
		s TEXT, b BLOB, yes BOOLEAN, at DATETIME, day DATE, stamp TIMESTAMP, any)`); err != nil {
		return err
	}
	at := time.Date(2026, 11, 27, 8, 0, 0, 123456789, time.UTC)
	long := strings.Repeat("langer Text äöü ", 1000)
	blob := bytes.Repeat([]byte{0, 1, 0xFF}, 1001)
	rows := [][]interface{}{
		{int64(math.MinInt64), -1.5, "", []byte{1}, false, at, at, at, "x"},
		{int64(math.MaxInt64), math.MaxFloat64, long, blob, true, at, at, at, int64(7)},
		{nil, nil, nil, nil, nil, nil, nil, nil, nil},
		{int64(0), 0.25, "7 bytes", []byte("8 bytes!"), true, at, at, at, 2.5},
	}
	for _, row := range rows {
		if _, err := w.db.ExecContext(ctx, `INSERT INTO kinds(i, f, s, b, yes, at, day, stamp, any)
			VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)`, row...); err != nil {
			return err
		}
	}
	got, err := w.db.QueryContext(ctx,
		"SELECT i, f, s, b, yes, at, day, stamp, any FROM kinds ORDER BY id")
	if err != nil {
		return err
	}
	defer got.Close()
	for number, row := range rows {
		if !got.Next() {
			return fmt.Errorf("row %d is missing: %v", number, got.Err())
		}
		values := make([]interface{}, len(row))
		into := make([]interface{}, len(row))
		for i := range values {
			into[i] = &values[i]
		}
		if err := got.Scan(into...); err != nil {
			return err
		}
		for i, value := range values {
			if !same(value, row[i]) {
				return fmt.Errorf("row %d, column %d: %#v and not %#v", number, i, value, row[i])
			}
		}
	}
	if got.Next() {
		return errors.New("one row too many")
	}
	if err := got.Err(); err != nil {
		return err
	}
	return declared(ctx, w.db)
}

func same(a, b interface{}) bool {
	if x, ok := a.(time.Time); ok {
		y, ok := b.(time.Time)
		return ok && x.Equal(y)
	}
	return reflect.DeepEqual(a, b)
}

// What a column is declared as decides what comes back.
func declared(ctx context.Context, db *sql.DB) error {
	// Seconds since 1970 in a column of times.
	if err := execAll(ctx, db, "INSERT INTO kinds(id, at) VALUES(100, 1800000000)"); err != nil {
		return err
	}
	var at time.Time
	if err := db.QueryRowContext(ctx, "SELECT at FROM kinds WHERE id = 100").Scan(&at); err != nil {
		return err
	}
	if at.Unix() != 1800000000 {
		return fmt.Errorf("%v", at)
	}
	var yes sql.NullBool
	var when sql.NullTime
	row := db.QueryRowContext(ctx, "SELECT yes, day FROM kinds WHERE id = 3")
	if err := row.Scan(&yes, &when); err != nil {
		return err
	}
	if yes.Valid || when.Valid {
		return errors.New("NULL is something")
	}
	return nil
}

func prepared(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, "CREATE TABLE prepared(n INTEGER, s TEXT)"); err != nil {
		return err
	}
	insert, err := w.db.PrepareContext(ctx, "INSERT INTO prepared VALUES(?, ?)")
	if err != nil {
		return err
	}
	defer insert.Close()
	for n := 1; n <= 20; n++ {
		result, err := insert.ExecContext(ctx, n, fmt.Sprint("number ", n))
		if err != nil {
			return err
		}
		id, _ := result.LastInsertId()
		changed, _ := result.RowsAffected()
		if id != int64(n) || changed != 1 {
			return fmt.Errorf("rowid %d, %d rows", id, changed)
		}
	}
	get, err := w.db.PrepareContext(ctx, "SELECT s FROM prepared WHERE n = ?")
	if err != nil {
		return err
	}
	defer get.Close()
	for n := 20; n > 0; n-- {
		var s string
		if err := get.QueryRowContext(ctx, n).Scan(&s); err != nil {
			return err
		}
		if s != fmt.Sprint("number ", n) {
			return errors.New(s)
		}
	}
	if err := get.QueryRowContext(ctx, 21).Scan(new(string)); err != sql.ErrNoRows {
		return fmt.Errorf("a row that is not there: %v", err)
	}
	if _, err := w.db.PrepareContext(ctx, "SELECT nothing FROM nowhere"); code(err) != 1 {
		return fmt.Errorf("no such table: %v", err)
	}
	return nil
}

func transactions(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, "CREATE TABLE moved(n INTEGER)"); err != nil {
		return err
	}
	for _, commit := range []bool{false, true} {
		tx, err := w.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		for n := 0; n < 10; n++ {
			if _, err := tx.ExecContext(ctx, "INSERT INTO moved VALUES(?)", n); err != nil {
				return err
			}
		}
		var inside int64
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM moved").Scan(&inside); err != nil {
			return err
		}
		if inside != 10 {
			return fmt.Errorf("%d rows seen inside", inside)
		}
		// Another connection sees nothing of it yet.
		if err := expect(ctx, w.db, 0, "SELECT count(*) FROM moved"); err != nil {
			return err
		}
		end, left := tx.Rollback, int64(0)
		if commit {
			end, left = tx.Commit, 10
		}
		if err := end(); err != nil {
			return err
		}
		if err := expect(ctx, w.db, left, "SELECT count(*) FROM moved"); err != nil {
			return err
		}
	}
	return nil
}

// As many parameters as the library sends: 255 in its version 1, thousands later.
func parameters(ctx context.Context, w *world) error {
	for _, count := range []int{1, 255, 300} {
		values := make([]interface{}, count)
		sum := int64(0)
		for i := range values {
			values[i] = int64(i)
			sum += int64(i)
		}
		query := "SELECT " + strings.Repeat("? + ", count-1) + "?"
		err := expect(ctx, w.db, sum, query, values...)
		if err != nil && count == 300 && strings.Contains(err.Error(), "too many parameters") {
			fmt.Println("this go-dqlite sends no more than 255 parameters")
			continue
		}
		if err != nil {
			return err
		}
		query = "CREATE TABLE IF NOT EXISTS many(sum); INSERT INTO many SELECT 0"
		if err := execAll(ctx, w.db, query); err != nil {
			return err
		}
		insert := "INSERT INTO many SELECT " + strings.Repeat("? + ", count-1) + "?"
		if _, err := w.db.ExecContext(ctx, insert, values...); err != nil {
			return err
		}
		if err := expect(ctx, w.db, sum, "SELECT max(sum) FROM many"); err != nil {
			return err
		}
	}
	return nil
}

// A result of many messages.
func parts(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, "CREATE TABLE large(n INTEGER PRIMARY KEY, s TEXT)",
		`INSERT INTO large WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c
		 WHERE n < 20000) SELECT n, printf('row number %08d', n) FROM c`); err != nil {
		return err
	}
	rows, err := w.db.QueryContext(ctx, "SELECT n, s FROM large ORDER BY n")
	if err != nil {
		return err
	}
	defer rows.Close()
	next := int64(1)
	for rows.Next() {
		var n int64
		var s string
		if err := rows.Scan(&n, &s); err != nil {
			return err
		}
		if n != next || s != fmt.Sprintf("row number %08d", n) {
			return fmt.Errorf("row %d is %d, %s", next, n, s)
		}
		next++
	}
	if rows.Err() != nil || next != 20001 {
		return fmt.Errorf("%d rows, %v", next-1, rows.Err())
	}
	return nil
}

// A result that is closed early is interrupted, and its connection goes on.
func interrupt(ctx context.Context, w *world) error {
	conn, err := w.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for round := 0; round < 5; round++ {
		rows, err := conn.QueryContext(ctx, `WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL
			SELECT n + 1 FROM c) SELECT n, 'something that takes some room' FROM c`)
		if err != nil {
			return err
		}
		for n := 0; n < 3000; n++ {
			if !rows.Next() {
				return rows.Err()
			}
		}
		if err := rows.Close(); err != nil {
			return err
		}
		var seven int64
		if err := conn.QueryRowContext(ctx, "SELECT 7").Scan(&seven); err != nil {
			return err
		}
		if seven != 7 {
			return fmt.Errorf("%d", seven)
		}
	}
	return nil
}

// code is SQLite's code of an error; 0 if it has none.
func code(err error) int {
	var failure driver.Error
	if errors.As(err, &failure) {
		return failure.Code
	}
	return 0
}

func constraints(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, "CREATE TABLE parent(id INTEGER PRIMARY KEY)",
		`CREATE TABLE strict(id INTEGER PRIMARY KEY, u TEXT UNIQUE, n TEXT NOT NULL,
		 c INTEGER CHECK(c > 0), p INTEGER REFERENCES parent)`,
		"INSERT INTO strict VALUES(1, 'a', 'n', 1, NULL)"); err != nil {
		return err
	}
	for _, wrong := range []struct {
		sql  string
		code int
		text string
	}{
		{"INSERT INTO strict VALUES(1, 'b', 'n', 1, NULL)", 1555, "UNIQUE constraint failed: strict.id"},
		{"INSERT INTO strict VALUES(2, 'a', 'n', 1, NULL)", 2067, "UNIQUE constraint failed: strict.u"},
		{"INSERT INTO strict VALUES(2, 'b', NULL, 1, NULL)", 1299, "NOT NULL constraint failed: strict.n"},
		{"INSERT INTO strict VALUES(2, 'b', 'n', 0, NULL)", 275, "CHECK constraint failed: c > 0"},
		{"INSERT INTO strict VALUES(2, 'b', 'n', 1, 9)", 787, "FOREIGN KEY constraint failed"},
		{"INSERT INTO nowhere VALUES(1)", 1, "no such table: nowhere"},
		{"SELEKT 1", 1, `near "SELEKT": syntax error`},
		{"ATTACH 'x.db' AS x", 23, "not authorized"},
	} {
		_, err := w.db.ExecContext(ctx, wrong.sql)
		if code(err) != wrong.code || err.Error() != wrong.text {
			return fmt.Errorf("%s: %d %v", wrong.sql, code(err), err)
		}
	}
	return expect(ctx, w.db, 1, "SELECT count(*) FROM strict")
}

// A transaction that read before another one wrote cannot write any more.
func busy(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, "CREATE TABLE counter(n INTEGER)",
		"INSERT INTO counter VALUES(0)"); err != nil {
		return err
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	var n int64
	if err := tx.QueryRowContext(ctx, "SELECT n FROM counter").Scan(&n); err != nil {
		return err
	}
	if err := execAll(ctx, w.db, "UPDATE counter SET n = n + 1"); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "UPDATE counter SET n = ?", n+1)
	if code(err) != driver.ErrBusySnapshot {
		return fmt.Errorf("a stale transaction wrote: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		return err
	}
	return expect(ctx, w.db, 1, "SELECT n FROM counter")
}
