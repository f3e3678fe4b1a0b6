"""An application of dqlite's Python stack, held to a cluster of Quire: the asyncio client, the
DB-API and SQLAlchemy's ORM, all unmodified.

    clients.py ADDRESSES SCENARIO...

It prints "ok SCENARIO" or a traceback and "failed SCENARIO", and exits with 1 if one failed.
"""

import asyncio
import datetime
import sys
import traceback

import dqliteclient
import dqlitedbapi
from dqlitewire import NodeRole
from sqlalchemy import (
    Boolean,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
    create_engine,
    func,
    inspect,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

ADDRESSES: list[str] = []
MOMENT = datetime.datetime(2026, 11, 27, 8, 30, 15, 250000)


# ---- the asyncio client


async def asyncio_client() -> None:
    async with await dqliteclient.connect(ADDRESSES[0], database="asyncio") as conn:
        kinds = "i INTEGER, f REAL, s TEXT, b BLOB, y BOOLEAN, t DATETIME"
        await conn.execute(f"CREATE TABLE kinds({kinds})")
        rows = [
            [-(2**63), 0.5, "", b"\x00\xff", False, MOMENT.isoformat(" ")],
            [2**63 - 1, -1e300, "ein längerer Text " * 500, b"x" * 5000, True, MOMENT.isoformat(" ")],
            [None] * 6,
        ]
        for row in rows:
            await conn.execute("INSERT INTO kinds VALUES(?, ?, ?, ?, ?, ?)", row)
        got = await conn.fetch("SELECT * FROM kinds ORDER BY rowid")
        for row, back in zip(rows, got, strict=True):
            for wanted, value in zip(row, back.values(), strict=True):
                assert value == wanted or str(value)[:19] == str(wanted)[:19], (value, wanted)
        assert list(got[2].values()) == [None] * 6, "NULL is NULL, in BOOLEAN and DATETIME too"

        # Two hundred and more parameters, and a result of many messages.
        sql = "SELECT " + " + ".join("?" * 300)
        assert await conn.fetchval(sql, list(range(300))) == sum(range(300))
        many = (
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) "
            "SELECT n, printf('row number %08d', n) AS s FROM c"
        )
        rows = await conn.fetch(many)
        assert [row["n"] for row in rows] == list(range(1, 20001))

        await conn.execute("CREATE TABLE moved(n)")
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO moved VALUES(1)")
                raise LookupError
        except LookupError:
            pass
        assert await conn.fetchval("SELECT count(*) FROM moved") == 0
        async with conn.transaction():
            await conn.execute("INSERT INTO moved VALUES(1), (2)")
        assert await conn.fetchval("SELECT count(*) FROM moved") == 2

        try:
            await conn.execute("SELEKT")
            raise AssertionError("no error")
        except dqliteclient.OperationalError as error:
            assert 'near "SELEKT": syntax error' in str(error), error
    await writers()


async def writers() -> None:
    """Writers of one row at a time; none of their additions is lost."""
    pool = await dqliteclient.create_pool(ADDRESSES, database="asyncio", min_size=1, max_size=8)
    try:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE counter(n INTEGER)")
            await conn.execute("INSERT INTO counter VALUES(0)")

        async def add() -> None:
            for _ in range(20):
                async with pool.acquire() as conn:
                    await conn.execute("UPDATE counter SET n = n + 1")

        await asyncio.gather(*(add() for _ in range(8)))
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT n FROM counter") == 160
    finally:
        await pool.close()


async def members() -> None:
    """What a program that looks after a cluster does: it asks, weighs, moves, adds and removes."""
    cluster = dqliteclient.ClusterClient(dqliteclient.MemoryNodeStore(ADDRESSES), timeout=20.0)
    nodes = await cluster.cluster_info()
    assert len(nodes) == 3 and {node.role for node in nodes} == {NodeRole.VOTER}, nodes
    for node in nodes:
        await cluster.set_weight(node.node_id + 10, address=node.address)
        meta = await cluster.describe(address=node.address)
        assert (meta.failure_domain, meta.weight) == (0, node.node_id + 10), meta

    before = await cluster.leader_info()
    assert before is not None
    target = next(node for node in nodes if node.node_id != before.node_id)
    conn = await cluster.connect("members")
    await conn.execute("CREATE TABLE moved(n)")
    try:
        async with conn.transaction():
            await conn.execute("INSERT INTO moved VALUES(1)")
            await cluster.transfer_leadership(target.node_id)
            await conn.execute("INSERT INTO moved VALUES(2)")
        raise AssertionError("the transaction went on")
    except dqliteclient.OperationalError as error:
        assert "not leader" in str(error), error
    await conn.close()
    after = await cluster.leader_info()
    assert after is not None and after.node_id == target.node_id, after
    async with await cluster.connect("members") as conn:
        assert await conn.fetchval("SELECT count(*) FROM moved") == 0

    async def role(node_id: int) -> NodeRole | None:
        roles = {node.node_id: node.role for node in await cluster.cluster_info()}
        return roles.get(node_id)

    other = next(n for n in nodes if n.node_id not in (before.node_id, target.node_id))
    for wanted in (NodeRole.STANDBY, NodeRole.SPARE, NodeRole.VOTER):
        await cluster.assign_role(other.node_id, wanted)
        assert await role(other.node_id) == wanted
    await cluster.add_node(9, "127.0.0.1:1")
    assert await role(9) == NodeRole.SPARE
    await cluster.remove_node(9)
    assert await role(9) is None
    for refused in (
        cluster.add_node(other.node_id, "127.0.0.1:1"),
        cluster.add_node(9, other.address),
        cluster.remove_node(77),
        cluster.assign_role(77, NodeRole.SPARE),
        cluster.transfer_leadership(77),
    ):
        try:
            await refused
            raise AssertionError("it was not refused")
        except dqliteclient.OperationalError as error:
            assert error.code == 1, error
    await cluster.remove_node(other.node_id)
    assert await role(other.node_id) is None


# ---- the DB-API


def dbapi() -> None:
    conn = dqlitedbapi.connect(ADDRESSES[0], database="dbapi")
    cursor = conn.cursor()
    cursor.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT UNIQUE, price REAL)")
    cursor.executemany("INSERT INTO item(name, price) VALUES(?, ?)", [("tea", 2.5), ("salt", 1)])
    conn.commit()
    cursor.execute("SELECT id, name, price FROM item ORDER BY id")
    assert [column[0] for column in cursor.description] == ["id", "name", "price"]
    assert [tuple(row) for row in cursor.fetchall()] == [(1, "tea", 2.5), (2, "salt", 1.0)]

    cursor.execute("BEGIN")
    cursor.execute("INSERT INTO item(name) VALUES('rice') RETURNING id")
    assert cursor.fetchone()[0] == 3
    conn.rollback()
    cursor.execute("SELECT count(*) FROM item")
    assert cursor.fetchone()[0] == 2, "a rollback takes it back"

    try:
        cursor.execute("INSERT INTO item(name) VALUES('tea')")
        raise AssertionError("no error")
    except dqlitedbapi.IntegrityError as error:
        assert "UNIQUE constraint failed: item.name" in str(error), error
    conn.rollback()

    cursor.execute("SAVEPOINT outer_one")
    cursor.execute("UPDATE item SET price = 9")
    cursor.execute("ROLLBACK TO outer_one")
    cursor.execute("RELEASE outer_one")
    conn.commit()
    cursor.execute("SELECT sum(price) FROM item")
    assert cursor.fetchone()[0] == 3.5
    conn.close()


# ---- SQLAlchemy


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    __table_args__ = (UniqueConstraint("name", name="one_name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    born: Mapped[datetime.datetime | None] = mapped_column(DateTime)
    alive: Mapped[bool | None] = mapped_column(Boolean)
    books: Mapped[list["Book"]] = relationship(back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"), index=True)
    title: Mapped[str] = mapped_column(String)
    price: Mapped[float | None] = mapped_column(Float)
    cover: Mapped[bytes | None] = mapped_column(LargeBinary)
    author: Mapped[Author] = relationship(back_populates="books")


def orm() -> None:
    engine = create_engine(f"dqlite://{ADDRESSES[0]}/orm")
    Base.metadata.create_all(engine)
    Base.metadata.create_all(engine)  # there already: reflection finds them

    with Session(engine) as session:
        ada = Author(name="Ada", born=MOMENT, alive=False)
        ada.books = [
            Book(title="Notes", price=3.5, cover=b"\x00\x01"),
            Book(title="Letters", price=None),
        ]
        session.add_all([ada, Author(name="Grace", alive=None)])
        session.commit()
        assert ada.id == 1 and [book.id for book in ada.books] == [1, 2]

    with Session(engine) as session:
        ada = session.scalars(select(Author).where(Author.name == "Ada")).one()
        assert ada.born == MOMENT and ada.alive is False
        assert session.scalars(select(Author.alive).where(Author.name == "Grace")).one() is None
        assert sorted(book.title for book in ada.books) == ["Letters", "Notes"]
        # One unit of work: an update, a delete and an insert, in the right order.
        ada.name = "Ada Lovelace"
        ada.books.remove(next(book for book in ada.books if book.title == "Letters"))
        ada.books.append(Book(title="Sketch", price=1.25))
        session.commit()

    with Session(engine) as session:
        titles = select(Book.title).join(Author).where(Author.name == "Ada Lovelace")
        assert sorted(session.scalars(titles)) == ["Notes", "Sketch"]
        assert session.scalar(select(func.sum(Book.price))) == 4.75
    savepoints(engine)
    reflection(engine)
    engine.dispose()


def savepoints(engine) -> None:
    with Session(engine) as session:
        session.add(Author(name="kept"))
        session.flush()
        try:
            with session.begin_nested():
                session.add(Author(name="Grace"))
                session.flush()
            raise AssertionError("no error")
        except IntegrityError as error:
            assert "UNIQUE constraint failed" in str(error), error
        with session.begin_nested():
            session.add(Author(name="kept too"))
        session.commit()
    with Session(engine) as session:
        names = sorted(session.scalars(select(Author.name)))
        assert names == ["Ada Lovelace", "Grace", "kept", "kept too"], names


def reflection(engine) -> None:
    found = inspect(engine)
    assert set(found.get_table_names()) >= {"author", "book"}
    columns = {column["name"]: column for column in found.get_columns("author")}
    assert isinstance(columns["born"]["type"], DateTime) and not columns["name"]["nullable"]
    assert isinstance(columns["id"]["type"], Integer)
    assert found.get_pk_constraint("book")["constrained_columns"] == ["id"]
    (key,) = found.get_foreign_keys("book")
    assert key["referred_table"] == "author" and key["constrained_columns"] == ["author_id"]
    assert [index["column_names"] for index in found.get_indexes("book")] == [["author_id"]]
    names = [constraint["name"] for constraint in found.get_unique_constraints("author")]
    assert names == ["one_name"], names


SCENARIOS = {
    "asyncio": lambda: asyncio.run(asyncio_client()),
    "members": lambda: asyncio.run(members()),
    "dbapi": dbapi,
    "orm": orm,
}


def main() -> int:
    if len(sys.argv) < 3:
        print("usage: clients.py ADDRESSES SCENARIO...", file=sys.stderr)
        return 2
    ADDRESSES.extend(sys.argv[1].split(","))
    failed = False
    for name in sys.argv[2:]:
        try:
            SCENARIOS[name]()
            print(f"ok {name}", flush=True)
        except Exception:
            failed = True
            traceback.print_exc(file=sys.stdout)
            print(f"failed {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
