-- Several drivers: trees as folders, and what a prepared root was asked for.

-- Folders under folders/: caches, rebuilt from tars.
CREATE TABLE folders (
  id         TEXT PRIMARY KEY,             -- names the folder
  kind       TEXT NOT NULL,                -- layer, glue (of a chain) or tree (a chain as it shows)
  of         TEXT NOT NULL,                -- the layer's diff ID, or the chain ID
  form       TEXT NOT NULL,                -- how ids and marks stand in it: orlop.layers.forms
  size       INTEGER NOT NULL,             -- bytes of its files
  entries    INTEGER NOT NULL,             -- 0 for a glue that is not needed, and has no folder
  boot       TEXT NOT NULL,                -- the boot in which it was made; after another it is made again
  created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX folders_by_of ON folders (kind, of, form);

-- The layers that a folder was made from.
CREATE TABLE folder_layers (
  folder  TEXT NOT NULL REFERENCES folders (id) ON DELETE CASCADE,
  diff_id TEXT NOT NULL,
  PRIMARY KEY (folder, diff_id)
) WITHOUT ROWID;
CREATE INDEX folder_layers_by_diff_id ON folder_layers (diff_id);

ALTER TABLE prepared ADD COLUMN form TEXT NOT NULL DEFAULT 'real';
ALTER TABLE prepared ADD COLUMN quota INTEGER;                      -- bytes, of a sized image
ALTER TABLE prepared ADD COLUMN uid_map TEXT NOT NULL DEFAULT '';   -- "inside:outside:size,..."
ALTER TABLE prepared ADD COLUMN gid_map TEXT NOT NULL DEFAULT '';

-- The folders that a root stands on, top first.
CREATE TABLE root_folders (
  root     TEXT NOT NULL REFERENCES prepared (id) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  folder   TEXT NOT NULL,
  PRIMARY KEY (root, position)
) WITHOUT ROWID;

-- The mounts that a caller added to a root, in order.
CREATE TABLE root_mounts (
  root     TEXT NOT NULL REFERENCES prepared (id) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  type     TEXT NOT NULL,                  -- bind, tmpfs or image
  source   TEXT NOT NULL,
  target   TEXT NOT NULL,                  -- inside the root
  options  TEXT NOT NULL,                  -- a line each
  config_digest TEXT,                      -- of the image that is mounted
  chain_id TEXT,
  PRIMARY KEY (root, position)
) WITHOUT ROWID;
CREATE INDEX root_mounts_by_config ON root_mounts (config_digest);
CREATE INDEX root_mounts_by_chain ON root_mounts (chain_id);
