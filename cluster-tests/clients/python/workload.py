"""The workloads of cluster-tests/src/chaos/workload.rs, through dqlite's asyncio client: each
operation is a line of JSON, as the history there has it.

    workload.py ADDRESSES NAME SECONDS FIRST CLIENTS SEED START

FIRST is the first client's number; one whose operation ended in doubt goes on under another.
START is when the run began, in nanoseconds of CLOCK_MONOTONIC, which all processes share.
"""

import asyncio
import json
import random
import sys
import time

import dqliteclient
from dqliteclient.exceptions import AmbiguousCommitError, OperationalError

# Busy in its three forms, full, and a node that does not lead: certainly not executed.
REFUSED = {5, 261, 517, 13, 10250, 8202}
# Leadership lost while it ran.
DOUBT = {10506, 8458}
PATIENCE = 5.0

UPSERT = "INSERT INTO r VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v"
READ = "SELECT coalesce((SELECT v FROM r WHERE k = ?1), 0)"
APPEND = "INSERT INTO l VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE SET v = v || ' ' || excluded.v"


class Poor(Exception):
    """There is not enough money."""


def say(line: object) -> None:
    print(json.dumps(line), flush=True)


class Worker:
    def __init__(self, addresses: list[str], name: str, start: int, first: int, seed: int) -> None:
        store = dqliteclient.MemoryNodeStore(addresses)
        self.cluster = dqliteclient.ClusterClient(store, timeout=PATIENCE)
        self.name, self.start, self.first = name, start, first
        self.random = random.Random(seed + first)
        self.conn: dqliteclient.DqliteConnection | None = None
        self.count = 0
        # Whether something was sent that changes something for good.
        self.sent = False
        self.last = (0, 0)

    def now(self) -> int:
        return time.monotonic_ns() - self.start

    async def work(self, until: float, clients: int) -> None:
        client = self.first
        while time.monotonic() < until:
            if self.conn is None:
                try:
                    async with asyncio.timeout(PATIENCE):
                        self.conn = await self.cluster.connect(self.name)
                except Exception:
                    await asyncio.sleep(0.05)
                    continue
            self.count += 1
            self.sent = False
            op = self.draw(self.first * 2**32 + self.count)
            called, outcome = self.now(), "Done"
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.perform(op)
            except Exception as error:
                outcome = self.outcome(error)
                self.conn.terminate()
                self.conn = None
            event = {"client": client, "called": called, "returned": self.now()}
            say(event | {"outcome": outcome, "op": op})
            if outcome == "Unknown":
                client += clients
        if self.conn is not None:
            self.conn.terminate()

    def outcome(self, error: Exception) -> str:
        if isinstance(error, OperationalError) and not isinstance(error, AmbiguousCommitError):
            if error.code in REFUSED:
                return "Refused"
            if error.code not in DOUBT:
                say({"surprise": f"Python: {error!r}"})
                return "Unknown"
        return "Unknown" if self.sent else "Refused"

    def key(self, keys: int, period_ms: int) -> int:
        return self.now() // 1_000_000 // period_ms * keys + self.random.randrange(keys)

    def draw(self, unique: int):
        if self.name == "set":
            return {"Add": {"element": unique}}
        if self.name == "register":
            key, kind = self.key(16, 250), self.random.randrange(10)
            if kind < 3:
                return {"Read": {"key": key, "value": 0}}
            if kind < 6 and self.last[0] // 16 == key // 16:
                key, value = self.last
                return {"Swap": {"key": key, "from": value, "to": unique, "swapped": False}}
            return {"Write": {"key": key, "value": unique}}
        if self.name == "lists":
            ops = []
            for at in range(1 + self.random.randrange(4)):
                key = self.key(6, 500)
                if self.random.randrange(2):
                    ops.append({"Append": {"key": key, "value": unique * 4 + at}})
                else:
                    ops.append({"Read": {"key": key, "list": []}})
            return ops
        if self.random.randrange(3) == 0:
            return {"Read": {"balances": []}}
        source = self.random.randrange(8)
        to = (source + 1 + self.random.randrange(7)) % 8
        return {"Transfer": {"from": source, "to": to, "amount": 1 + self.random.randrange(5)}}

    async def perform(self, op) -> None:
        if self.name == "lists":
            await self.many(lambda: self.lists(op))
            return
        ((kind, fields),) = op.items()
        if kind == "Add":
            self.sent = True
            await self.conn.execute("INSERT INTO s VALUES(?)", [fields["element"]])
        elif kind == "Read" and self.name == "register":
            fields["value"] = await self.conn.fetchval(READ, [fields["key"]])
            self.last = (fields["key"], fields["value"])
        elif kind == "Read":
            rows = await self.conn.fetchall("SELECT b FROM a ORDER BY id")
            fields["balances"] = [row[0] for row in rows]
        elif kind == "Write":
            self.sent = True
            await self.conn.execute(UPSERT, [fields["key"], fields["value"]])
            self.last = (fields["key"], fields["value"])
        elif kind == "Swap":
            await self.many(lambda: self.swap(fields))
        else:
            await self.many(lambda: self.transfer(fields))

    async def many(self, do) -> None:
        """Statements in a transaction. Until COMMIT is sent nothing is kept."""
        await self.conn.execute(self.random.choice(["BEGIN", "BEGIN IMMEDIATE"]))
        await do()
        self.sent = True
        await self.conn.execute("COMMIT")

    async def swap(self, fields) -> None:
        value = await self.conn.fetchval(READ, [fields["key"]])
        fields["swapped"] = value == fields["from"]
        if fields["swapped"]:
            await self.conn.execute(UPSERT, [fields["key"], fields["to"]])

    async def lists(self, ops) -> None:
        for op in ops:
            if "Append" in op:
                part = op["Append"]
                await self.conn.execute(APPEND, [part["key"], str(part["value"])])
            else:
                part = op["Read"]
                row = await self.conn.fetchone("SELECT v FROM l WHERE k = ?", [part["key"]])
                text = "" if row is None else str(next(iter(row.values())))
                part["list"] = [int(number) for number in text.split()]

    async def transfer(self, fields) -> None:
        balance = "SELECT b FROM a WHERE id = ?"
        source, to, amount = fields["from"], fields["to"], fields["amount"]
        rich = await self.conn.fetchval(balance, [source])
        if rich < amount:
            raise Poor
        poor = await self.conn.fetchval(balance, [to])
        for account, value in ((source, rich - amount), (to, poor + amount)):
            await self.conn.execute("UPDATE a SET b = ?2 WHERE id = ?1", [account, value])


async def main() -> None:
    addresses, name = sys.argv[1].split(","), sys.argv[2]
    seconds, first, clients, seed, start = (int(text) for text in sys.argv[3:8])
    until = time.monotonic() + seconds
    workers = [Worker(addresses, name, start, first + at, seed) for at in range(clients)]
    await asyncio.gather(*(worker.work(until, clients) for worker in workers))


if __name__ == "__main__":
    if len(sys.argv) != 8:
        print("usage: workload.py ADDRESSES NAME SECONDS FIRST CLIENTS SEED START", file=sys.stderr)
        sys.exit(2)
    asyncio.run(main())
