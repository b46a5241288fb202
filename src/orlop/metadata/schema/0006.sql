-- What others' protocols ask for: containerd's snapshots and content, and what happened (events).

-- ---- snapshots ------------------------------------------------------------------------------

-- containerd's snapshots.  What was written to one lies in snapshots/<id>; times are nanoseconds since 1970.
CREATE TABLE snapshots (
  id         TEXT PRIMARY KEY,             -- names its folder, where it has one
  namespace  TEXT NOT NULL,
  key        TEXT NOT NULL,                -- the client's name for it
  parent     TEXT REFERENCES snapshots (id),
  kind       TEXT NOT NULL,                -- active, view or committed
  has_folder INTEGER NOT NULL,
  chain_id   TEXT,                         -- of the layers at the bottom; NULL where folders are all there is
  labels     TEXT NOT NULL,                -- a JSON object
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  size       INTEGER NOT NULL,             -- bytes and inodes of a committed one's folder
  inodes     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX snapshots_by_key ON snapshots (key, namespace);
CREATE INDEX snapshots_by_parent ON snapshots (parent);
CREATE INDEX snapshots_by_chain ON snapshots (chain_id) WHERE chain_id IS NOT NULL;

-- The layers, bottom first, that a committed snapshot consists of, where it is made of orlop's own.
CREATE TABLE snapshot_layers (
  snapshot TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  diff_id  TEXT NOT NULL,
  PRIMARY KEY (snapshot, position)
) WITHOUT ROWID;
CREATE INDEX snapshot_layers_by_diff_id ON snapshot_layers (diff_id);

-- ---- content --------------------------------------------------------------------------------

-- Blobs that a namespace of containerd's content API has; each stays in the store until no namespace has it.
CREATE TABLE contents (
  namespace  TEXT NOT NULL,
  digest     TEXT NOT NULL,
  size       INTEGER NOT NULL,
  labels     TEXT NOT NULL,                -- a JSON object
  created_at INTEGER NOT NULL,             -- nanoseconds since 1970
  updated_at INTEGER NOT NULL,
  PRIMARY KEY (namespace, digest)
) WITHOUT ROWID;
CREATE INDEX contents_by_digest ON contents (digest);

-- ---- events ---------------------------------------------------------------------------------

-- What happened, written by the transaction that did it.  A number is never used again: the last event stays
-- when the others are dropped.
CREATE TABLE events (
  seq        INTEGER PRIMARY KEY,
  time_ns    INTEGER NOT NULL,             -- since 1970
  namespace  TEXT NOT NULL,                -- '' for what all namespaces share
  kind       TEXT NOT NULL,
  subject    TEXT NOT NULL,                -- a name, or a path
  attributes TEXT NOT NULL                 -- a JSON object of texts
);

-- Which log it is, in one row: a cursor of another store's is told from ours.
CREATE TABLE event_log (
  id TEXT NOT NULL
);
INSERT INTO event_log (id) VALUES (lower(hex(randomblob(4))));
