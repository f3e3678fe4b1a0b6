-- Services that find each other through the cluster.

CREATE TABLE services(
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    daemon_address TEXT NOT NULL,
    daemon_nonce TEXT NOT NULL,
    heartbeat DATETIME DEFAULT CURRENT_TIMESTAMP,
    UNIQUE(name),
    UNIQUE(address),
    UNIQUE(daemon_address)
);
