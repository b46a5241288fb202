-- Changed roots: what was captured of them, and the points that they can go back to.

-- The layer that a root's upper was last captured as.  It keeps nothing: where the layer is gone, or the upper
-- has changed since, it is captured again.
CREATE TABLE captures (
  root        TEXT PRIMARY KEY REFERENCES prepared (id) ON DELETE CASCADE,
  diff_id     TEXT,                        -- NULL where nothing had changed
  fingerprint BLOB NOT NULL,               -- of the upper's inodes: orlop.layers.fingerprint
  created_at  REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX captures_by_diff_id ON captures (diff_id);

-- Named points of a root, each a config without an image name: what it was prepared from, and a captured layer.
CREATE TABLE checkpoints (
  root          TEXT NOT NULL REFERENCES prepared (id) ON DELETE CASCADE,
  name          TEXT NOT NULL,
  config_digest TEXT NOT NULL,
  created_at    REAL NOT NULL,
  PRIMARY KEY (root, name)
) WITHOUT ROWID;
CREATE INDEX checkpoints_by_config ON checkpoints (config_digest);

-- What the manifest that a push makes for a config is to be annotated with: a commit keeps its base's.
CREATE TABLE image_annotations (
  config_digest TEXT NOT NULL,
  key           TEXT NOT NULL,
  value         TEXT NOT NULL,
  PRIMARY KEY (config_digest, key)
) WITHOUT ROWID;
