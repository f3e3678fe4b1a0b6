// An application of dqlite's, held to a cluster of Quire: database/sql over go-dqlite's driver, and
// go-dqlite's administration client, both unmodified.
//
//	clients ADDRESSES DIR SCENARIO...
//	clients ADDRESSES workload ...
//
// The second form is in workload.go.
//
// It prints "ok SCENARIO" or "failed SCENARIO: why" for each, and exits with 1 if one failed. What
// it cannot do itself it asks for on standard output ("kill ADDRESS") and waits for a line on
// standard input that says that it is done.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/canonical/go-dqlite/client"
	"github.com/canonical/go-dqlite/driver"
)

// How long anything may take that should take a moment.
const patience = 60 * time.Second

// What a scenario works with.
type world struct {
	addresses []string
	dir       string
	store     client.NodeStore
	db        *sql.DB
	stdin     *bufio.Reader
}

type scenario struct {
	name string
	run  func(context.Context, *world) error
}

var scenarios = []scenario{
	{"types", types},
	{"prepared", prepared},
	{"transactions", transactions},
	{"parameters", parameters},
	{"parts", parts},
	{"interrupt", interrupt},
	{"constraints", constraints},
	{"dump", dump},
	{"busy", busy},
	{"metadata", metadata},
	{"members", members},
	{"transfer", transfer},
	{"failover", failover},
}

func main() {
	if len(os.Args) > 2 && os.Args[2] == "workload" {
		if err := workload(append(os.Args[1:2], os.Args[3:]...)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		return
	}
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: clients ADDRESSES DIR SCENARIO...")
		os.Exit(2)
	}
	w, err := open(strings.Split(os.Args[1], ","), os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	failed := false
	for _, name := range os.Args[3:] {
		if err := run(w, name); err != nil {
			failed = true
			fmt.Printf("failed %s: %v\n", name, err)
		} else {
			fmt.Printf("ok %s\n", name)
		}
	}
	if failed {
		os.Exit(1)
	}
}

func open(addresses []string, dir string) (*world, error) {
	store := client.NewInmemNodeStore()
	nodes := make([]client.NodeInfo, len(addresses))
	for i, address := range addresses {
		nodes[i] = client.NodeInfo{Address: address}
	}
	if err := store.Set(context.Background(), nodes); err != nil {
		return nil, err
	}
	dqlite, err := driver.New(store)
	if err != nil {
		return nil, err
	}
	sql.Register("dqlite", dqlite)
	db, err := sql.Open("dqlite", "go.db")
	if err != nil {
		return nil, err
	}
	stdin := bufio.NewReader(os.Stdin)
	return &world{addresses, dir, store, db, stdin}, nil
}

func run(w *world, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, s := range scenarios {
		if s.name == name {
			return s.run(ctx, w)
		}
	}
	return errors.New("there is no such scenario")
}

// ask has the test do something to the cluster.
func (w *world) ask(what string) error {
	fmt.Println(what)
	answer, err := w.stdin.ReadString('\n')
	if err != nil {
		return err
	}
	if strings.TrimSpace(answer) != "done" {
		return fmt.Errorf("%s: %s", what, answer)
	}
	return nil
}

func (w *world) leader(ctx context.Context) (*client.Client, error) {
	return client.FindLeader(ctx, w.store)
}

// execAll runs statements one after the other.
func execAll(ctx context.Context, db *sql.DB, statements ...string) error {
	for _, statement := range statements {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// integer is the one value of the one row.
func integer(ctx context.Context, db *sql.DB, query string, args ...interface{}) (int64, error) {
	var value int64
	err := db.QueryRowContext(ctx, query, args...).Scan(&value)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", query, err)
	}
	return value, nil
}

// expect compares the one value of the one row.
func expect(ctx context.Context, db *sql.DB, wanted int64, query string, args ...interface{}) error {
	value, err := integer(ctx, db, query, args...)
	if err == nil && value != wanted {
		err = fmt.Errorf("%s: %d and not %d", query, value, wanted)
	}
	return err
}

// until repeats something until it succeeds.
func until(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
