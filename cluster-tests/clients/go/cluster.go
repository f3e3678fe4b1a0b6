package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/canonical/go-dqlite/client"
)

// The files of a database, which the test opens with SQLite.
func dump(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, "CREATE TABLE dumped(n INTEGER)",
		`INSERT INTO dumped WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c
		 WHERE n < 5000) SELECT n FROM c`); err != nil {
		return err
	}
	leader, err := w.leader(ctx)
	if err != nil {
		return err
	}
	defer leader.Close()
	files, err := leader.Dump(ctx, "go.db")
	if err != nil {
		return err
	}
	if len(files) != 2 || files[0].Name != "go.db" || files[1].Name != "go.db-wal" {
		return fmt.Errorf("%d files", len(files))
	}
	for _, file := range files {
		if err := os.WriteFile(filepath.Join(w.dir, file.Name), file.Data, 0o644); err != nil {
			return err
		}
	}
	if _, err := leader.Dump(ctx, "absent.db"); err == nil {
		return errors.New("a database that is not there was dumped")
	}
	return nil
}

// What each node says of itself and of the others.
func metadata(ctx context.Context, w *world) error {
	for _, address := range w.addresses {
		node, err := client.New(ctx, address)
		if err != nil {
			return err
		}
		defer node.Close()
		nodes, err := node.Cluster(ctx)
		if err != nil {
			return err
		}
		if len(nodes) != len(w.addresses) {
			return fmt.Errorf("%s knows %v", address, nodes)
		}
		if err := node.Weight(ctx, 5); err != nil {
			return err
		}
		described, err := node.Describe(ctx)
		if err != nil {
			return err
		}
		if described.Weight != 5 || described.FailureDomain != 0 {
			return fmt.Errorf("%s is %v", address, described)
		}
	}
	return nil
}

// A follower as stand-by, as spare, gone, and back as voter.
func members(ctx context.Context, w *world) error {
	leader, err := w.leader(ctx)
	if err != nil {
		return err
	}
	defer leader.Close()
	info, err := leader.Leader(ctx)
	if err != nil {
		return err
	}
	nodes, err := leader.Cluster(ctx)
	if err != nil {
		return err
	}
	var other client.NodeInfo
	for _, node := range nodes {
		if node.ID != info.ID {
			other = node
		}
	}
	role := func(wanted client.NodeRole) error {
		nodes, err := leader.Cluster(ctx)
		for _, node := range nodes {
			if node.ID == other.ID && node.Role == wanted && node.Address == other.Address {
				return nil
			}
		}
		return fmt.Errorf("%d is not %v: %v, %v", other.ID, wanted, nodes, err)
	}
	for _, wanted := range []client.NodeRole{client.StandBy, client.Spare, client.Voter} {
		if err := leader.Assign(ctx, other.ID, wanted); err != nil {
			return fmt.Errorf("assign %v: %w", wanted, err)
		}
		if err := role(wanted); err != nil {
			return err
		}
	}
	if err := leader.Assign(ctx, other.ID, client.NodeRole(7)); err == nil {
		return errors.New("a role that is none was assigned")
	}
	if err := leader.Add(ctx, other); err == nil {
		return errors.New("a member was added again")
	}
	if err := leader.Remove(ctx, other.ID); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if nodes, err := leader.Cluster(ctx); err != nil || len(nodes) != len(w.addresses)-1 {
		return fmt.Errorf("after the removal: %v, %v", nodes, err)
	}
	return execAll(ctx, w.db, "CREATE TABLE without_one(n)")
}

// Leadership moves on purpose, and an open transaction is lost with it.
func transfer(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, "CREATE TABLE handed(n INTEGER)"); err != nil {
		return err
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO handed VALUES(1)"); err != nil {
		return err
	}
	leader, err := w.leader(ctx)
	if err != nil {
		return err
	}
	defer leader.Close()
	before, err := leader.Leader(ctx)
	if err != nil {
		return err
	}
	if err := leader.Transfer(ctx, 0); err != nil {
		return err
	}
	// It is asked at once: who leads is known when Transfer returns.
	after, err := leader.Leader(ctx)
	if err != nil {
		return err
	}
	if after.ID == before.ID || after.ID == 0 {
		return fmt.Errorf("%v leads, and before %v", after, before)
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO handed VALUES(2)"); err == nil {
		return errors.New("the transaction went on")
	}
	if err := tx.Commit(); err == nil {
		return errors.New("the transaction was committed")
	}
	if err := expect(ctx, w.db, 0, "SELECT count(*) FROM handed"); err != nil {
		return err
	}
	return execAll(ctx, w.db, "INSERT INTO handed VALUES(3)")
}

// The leader is killed. The pool finds the next one, and what was acknowledged is there.
func failover(ctx context.Context, w *world) error {
	if err := execAll(ctx, w.db, "CREATE TABLE kept(n INTEGER PRIMARY KEY)"); err != nil {
		return err
	}
	for n := 1; n <= 10; n++ {
		if _, err := w.db.ExecContext(ctx, "INSERT INTO kept VALUES(?)", n); err != nil {
			return err
		}
	}
	leader, err := w.leader(ctx)
	if err != nil {
		return err
	}
	info, err := leader.Leader(ctx)
	if err != nil {
		return err
	}
	leader.Close()
	if err := w.ask("kill " + info.Address); err != nil {
		return err
	}
	// Not executed, or executed and not acknowledged: the key tells.
	if err := until(ctx, func() error {
		_, err := w.db.ExecContext(ctx, "INSERT OR IGNORE INTO kept VALUES(11)")
		return err
	}); err != nil {
		return err
	}
	if err := expect(ctx, w.db, 11, "SELECT count(*) FROM kept"); err != nil {
		return err
	}
	next, err := w.leader(ctx)
	if err != nil {
		return err
	}
	defer next.Close()
	now, err := next.Leader(ctx)
	if err != nil {
		return err
	}
	if now.Address == info.Address {
		return fmt.Errorf("%s leads after its death", now.Address)
	}
	return nil
}
