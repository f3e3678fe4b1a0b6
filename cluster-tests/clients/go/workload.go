package main

import (
	"context"
	"database/sql"
	basedriver "database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/canonical/go-dqlite/driver"
)

// The workloads of cluster-tests/src/chaos/workload.rs, in Go: each operation is a line of JSON, as
// the history there has it.
//
//	clients ADDRESSES workload NAME SECONDS FIRST CLIENTS SEED START
//
// FIRST is the first client's number; one whose operation ended in doubt goes on under another.
// START is when the run began, in nanoseconds of CLOCK_MONOTONIC, which all processes share.
//
// What nobody can tell is "Unknown": database/sql would repeat a statement whose connection broke,
// which a connection of one's own does not.

type m = map[string]interface{}

type event struct {
	Client   uint32      `json:"client"`
	Called   uint64      `json:"called"`
	Returned uint64      `json:"returned"`
	Outcome  string      `json:"outcome"`
	Op       interface{} `json:"op"`
}

type job struct {
	db      *sql.DB
	name    string
	start   uint64
	until   time.Time
	clients uint32
	out     sync.Mutex
}

// What one client is at.
type worker struct {
	job    *job
	rand   *rand.Rand
	first  uint32
	client uint32
	count  int64
	conn   *sql.Conn
	// Whether something was sent that changes something for good.
	sent bool
	// What was read or written last in a register, and where.
	lastKey   uint64
	lastValue int64
}

func monotonic() uint64 {
	var now syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&now)), 0)
	return uint64(now.Sec)*1_000_000_000 + uint64(now.Nsec)
}

func workload(args []string) error {
	if len(args) != 7 {
		return errors.New("usage: clients ADDRESSES workload NAME SECONDS FIRST CLIENTS SEED START")
	}
	w, err := open(strings.Split(args[0], ","), "")
	if err != nil {
		return err
	}
	var numbers [5]uint64
	for i, text := range args[2:] {
		if numbers[i], err = strconv.ParseUint(text, 10, 64); err != nil {
			return err
		}
	}
	db, err := sql.Open("dqlite", args[1])
	if err != nil {
		return err
	}
	w.db.Close()
	until := time.Now().Add(time.Duration(numbers[0]) * time.Second)
	j := &job{db: db, name: args[1], start: numbers[4], until: until, clients: uint32(numbers[2])}
	var group sync.WaitGroup
	for i := uint64(0); i < numbers[2]; i++ {
		number := uint32(numbers[1] + i)
		source := rand.NewSource(int64(numbers[3]) + int64(number))
		worker := &worker{job: j, rand: rand.New(source), first: number, client: number}
		group.Add(1)
		go func() {
			defer group.Done()
			worker.work()
		}()
	}
	group.Wait()
	return nil
}

func (w *worker) work() {
	for time.Now().Before(w.job.until) {
		w.sent = false
		called := monotonic() - w.job.start
		op, done, err := w.once()
		outcome := "Done"
		if err != nil || !done {
			outcome = "Refused"
			if w.sent {
				outcome = w.outcome(err)
			}
			w.drop()
		}
		if op == nil {
			// There is no leader to be found.
			time.Sleep(20 * time.Millisecond)
			continue
		}
		w.job.print(event{w.client, called, monotonic() - w.job.start, outcome, op})
		if outcome == "Unknown" {
			w.client += w.job.clients
		}
	}
	w.drop()
}

func (j *job) print(what interface{}) {
	line, err := json.Marshal(what)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	j.out.Lock()
	defer j.out.Unlock()
	fmt.Printf("%s\n", line)
}

// outcome is what an error says of what was sent.
func (w *worker) outcome(err error) string {
	if err == nil {
		return "Refused"
	}
	var failure driver.Error
	if !errors.As(err, &failure) {
		return "Unknown"
	}
	switch failure.Code {
	case driver.ErrBusy, driver.ErrBusyRecovery, driver.ErrBusySnapshot, 13:
		return "Refused"
	}
	w.job.print(m{"surprise": fmt.Sprintf("Go: %d %s", failure.Code, failure.Message)})
	return "Unknown"
}

// drop closes the connection, and not only for database/sql.
func (w *worker) drop() {
	if w.conn != nil {
		w.conn.Raw(func(interface{}) error { return basedriver.ErrBadConn })
		w.conn.Close()
		w.conn = nil
	}
}

// once does one operation: what it was, with its answer, and whether it was done. Without a
// connection there is none.
func (w *worker) once() (interface{}, bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if w.conn == nil {
		conn, err := w.job.db.Conn(ctx)
		if err != nil {
			return nil, false, err
		}
		w.conn = conn
	}
	w.count++
	unique := int64(w.first)<<32 + w.count
	switch w.job.name {
	case "set":
		return w.add(ctx, unique)
	case "register":
		return w.register(ctx, unique)
	case "lists":
		return w.lists(ctx, unique)
	default:
		return w.bank(ctx)
	}
}

func (w *worker) key(keys, period uint64) uint64 {
	elapsed := (monotonic() - w.job.start) / 1_000_000
	return elapsed/period*keys + uint64(w.rand.Int63n(int64(keys)))
}

func (w *worker) exec(ctx context.Context, query string, args ...interface{}) error {
	_, err := w.conn.ExecContext(ctx, query, args...)
	return err
}

func (w *worker) integer(ctx context.Context, query string, args ...interface{}) (int64, error) {
	var value int64
	err := w.conn.QueryRowContext(ctx, query, args...).Scan(&value)
	return value, err
}

// many runs statements in a transaction. Until COMMIT is sent nothing is kept.
func (w *worker) many(ctx context.Context, do func() error) error {
	begin := "BEGIN"
	if w.rand.Intn(2) == 0 {
		begin = "BEGIN IMMEDIATE"
	}
	if err := w.exec(ctx, begin); err != nil {
		return w.told(err)
	}
	if err := do(); err != nil {
		return w.told(err)
	}
	w.sent = true
	return w.exec(ctx, "COMMIT")
}

// told has errors that no fault explains printed, also where nothing was kept.
func (w *worker) told(err error) error {
	w.outcome(err)
	return err
}

func (w *worker) add(ctx context.Context, unique int64) (interface{}, bool, error) {
	op := m{"Add": m{"element": unique}}
	insert := func() error { return w.exec(ctx, "INSERT INTO s VALUES(?)", unique) }
	if w.rand.Intn(2) == 0 {
		w.sent = true
		return op, true, insert()
	}
	return op, true, w.many(ctx, insert)
}

const (
	upsert = `INSERT INTO r VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v`
	read   = `SELECT coalesce((SELECT v FROM r WHERE k = ?1), 0)`
)

func (w *worker) register(ctx context.Context, unique int64) (interface{}, bool, error) {
	key := w.key(16, 250)
	kind := w.rand.Intn(10)
	if kind < 3 {
		value, err := w.integer(ctx, read, int64(key))
		w.lastKey, w.lastValue = key, value
		return m{"Read": m{"key": key, "value": value}}, true, err
	}
	if kind < 6 && w.lastKey/16 == key/16 {
		key, from, swapped := w.lastKey, w.lastValue, false
		err := w.many(ctx, func() error {
			value, err := w.integer(ctx, read, int64(key))
			if err == nil && value == from {
				swapped = true
				err = w.exec(ctx, upsert, int64(key), unique)
			}
			return err
		})
		if swapped {
			w.lastValue = unique
		}
		op := m{"Swap": m{"key": key, "from": from, "to": unique, "swapped": swapped}}
		return op, true, err
	}
	w.sent = true
	err := w.exec(ctx, upsert, int64(key), unique)
	w.lastKey, w.lastValue = key, unique
	return m{"Write": m{"key": key, "value": unique}}, true, err
}

func (w *worker) lists(ctx context.Context, unique int64) (interface{}, bool, error) {
	var ops []m
	err := w.many(ctx, func() error {
		for at := int64(0); at < 1+int64(w.rand.Intn(4)); at++ {
			key := w.key(6, 500)
			if w.rand.Intn(2) == 0 {
				value := unique*4 + at
				ops = append(ops, m{"Append": m{"key": key, "value": value}})
				if err := w.exec(ctx, `INSERT INTO l VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE
				 SET v = v || ' ' || excluded.v`, int64(key), strconv.FormatInt(value, 10)); err != nil {
					return err
				}
				continue
			}
			var text string
			err := w.conn.QueryRowContext(ctx, "SELECT v FROM l WHERE k = ?", int64(key)).Scan(&text)
			list := []int64{}
			if err == nil {
				for _, number := range strings.Split(text, " ") {
					value, err := strconv.ParseInt(number, 10, 64)
					if err != nil {
						value = -1
					}
					list = append(list, value)
				}
			} else if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			ops = append(ops, m{"Read": m{"key": key, "list": list}})
		}
		return nil
	})
	if ops == nil {
		return nil, false, err
	}
	return ops, true, err
}

func (w *worker) bank(ctx context.Context) (interface{}, bool, error) {
	if w.rand.Intn(3) == 0 {
		balances := []int64{}
		rows, err := w.conn.QueryContext(ctx, "SELECT b FROM a ORDER BY id")
		if err == nil {
			defer rows.Close()
			for rows.Next() {
				var balance int64
				if err := rows.Scan(&balance); err != nil {
					return nil, false, err
				}
				balances = append(balances, balance)
			}
			err = rows.Err()
		}
		return m{"Read": m{"balances": balances}}, true, err
	}
	from := w.rand.Int63n(8)
	to := (from + 1 + w.rand.Int63n(7)) % 8
	amount := 1 + w.rand.Int63n(5)
	op := m{"Transfer": m{"from": from, "to": to, "amount": amount}}
	poor := errors.New("there is not enough")
	err := w.many(ctx, func() error {
		rich, err := w.integer(ctx, "SELECT b FROM a WHERE id = ?", from)
		if err != nil {
			return err
		}
		if rich < amount {
			return poor
		}
		other, err := w.integer(ctx, "SELECT b FROM a WHERE id = ?", to)
		if err != nil {
			return err
		}
		if err := w.exec(ctx, "UPDATE a SET b = ?2 WHERE id = ?1", from, rich-amount); err != nil {
			return err
		}
		return w.exec(ctx, "UPDATE a SET b = ?2 WHERE id = ?1", to, other+amount)
	})
	return op, true, err
}
