-- The first schema of meta.db.
--
-- Digests are text ("sha256:<hex>"), times are seconds since 1970, sizes are bytes.  What a row names
-- is whole and durable.  Everything a client can name carries a namespace.

CREATE TABLE images (
  namespace       TEXT NOT NULL,
  name            TEXT NOT NULL,           -- a full reference, or an ID for an image without a name
  config_digest   TEXT NOT NULL,
  manifest_digest TEXT,                    -- NULL until the image has a manifest
  created_at      REAL NOT NULL,
  updated_at      REAL NOT NULL,
  PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
CREATE INDEX images_by_config ON images (config_digest);

-- The layers that a config lists, bottom first.
CREATE TABLE config_layers (
  config_digest TEXT NOT NULL,
  position      INTEGER NOT NULL,
  diff_id       TEXT NOT NULL,
  PRIMARY KEY (config_digest, position)
) WITHOUT ROWID;
CREATE INDEX config_layers_by_diff_id ON config_layers (diff_id);

-- The manifests known for a config; their bytes and the config's are blobs.
CREATE TABLE image_manifests (
  config_digest TEXT NOT NULL,
  digest        TEXT NOT NULL,
  media_type    TEXT NOT NULL,
  size          INTEGER NOT NULL,
  PRIMARY KEY (config_digest, digest)
) WITHOUT ROWID;
CREATE INDEX image_manifests_by_digest ON image_manifests (digest);

CREATE TABLE layers (
  diff_id    TEXT PRIMARY KEY,
  size       INTEGER NOT NULL,             -- of layer.tar
  data_size  INTEGER NOT NULL,             -- of layer.data, 0 where there is none
  index_size INTEGER NOT NULL,
  entries    INTEGER NOT NULL,
  created_at REAL NOT NULL
) WITHOUT ROWID;

-- The blobs that a layer is known to come as.
CREATE TABLE layer_blobs (
  diff_id    TEXT NOT NULL,
  digest     TEXT NOT NULL,
  size       INTEGER NOT NULL,
  media_type TEXT NOT NULL,
  recipe     TEXT,                         -- how orlop made it from the tar, where it did
  PRIMARY KEY (diff_id, digest)
) WITHOUT ROWID;
CREATE INDEX layer_blobs_by_digest ON layer_blobs (digest);

-- Blobs in content/blobs.
CREATE TABLE blobs (
  digest     TEXT PRIMARY KEY,
  size       INTEGER NOT NULL,
  created_at REAL NOT NULL
) WITHOUT ROWID;

-- Registries and repositories that served a blob, or took it.
CREATE TABLE blob_sources (
  digest     TEXT NOT NULL,
  registry   TEXT NOT NULL,
  repository TEXT NOT NULL,
  seen_at    REAL NOT NULL,
  PRIMARY KEY (digest, registry, repository)
) WITHOUT ROWID;

-- A chain is a stack of EROFS images; each row is one image, lying on its parent's.
CREATE TABLE chains (
  chain_id   TEXT PRIMARY KEY,
  parent     TEXT REFERENCES chains (chain_id),
  depth      INTEGER NOT NULL,             -- images in the stack, this one included
  entries    INTEGER NOT NULL,             -- of all layers below and in it
  size       INTEGER NOT NULL,             -- of the image's file
  uuid       BLOB NOT NULL,
  devices    TEXT NOT NULL,                -- "<diff id> tar|data", a line each, in device order
  created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX chains_by_parent ON chains (parent);

-- All the layers that a chain stands for, bottom first.
CREATE TABLE chain_layers (
  chain_id TEXT NOT NULL REFERENCES chains (chain_id) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  diff_id  TEXT NOT NULL,
  PRIMARY KEY (chain_id, position)
) WITHOUT ROWID;
CREATE INDEX chain_layers_by_diff_id ON chain_layers (diff_id);

CREATE TABLE prepared (
  id            TEXT PRIMARY KEY,          -- names the folder under prepared/
  namespace     TEXT NOT NULL,
  path          TEXT NOT NULL UNIQUE,
  image         TEXT NOT NULL,             -- the name it was prepared under
  config_digest TEXT NOT NULL,
  chain_id      TEXT NOT NULL,
  driver        TEXT NOT NULL,
  kind          TEXT NOT NULL,             -- active or view
  self_contained INTEGER NOT NULL,
  mounted       INTEGER NOT NULL,          -- orlop performed the mounts itself
  made_target   INTEGER NOT NULL,          -- and made the folder at path for it
  created_at    REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX prepared_by_chain ON prepared (chain_id);
CREATE INDEX prepared_by_config ON prepared (config_digest);

CREATE TABLE labels (
  kind  TEXT NOT NULL,                     -- image or prepared
  owner TEXT NOT NULL,                     -- namespace and name, or id
  key   TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (kind, owner, key)
) WITHOUT ROWID;

-- A lease keeps what a running operation has made and nothing else names yet.  It lasts while its owner
-- holds the lock named after it.
CREATE TABLE leases (
  id         TEXT PRIMARY KEY,
  created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE lease_refs (
  lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
  kind  TEXT NOT NULL,                     -- layer, blob, chain or config
  ref   TEXT NOT NULL,
  PRIMARY KEY (lease, kind, ref)
) WITHOUT ROWID;
CREATE INDEX lease_refs_by_ref ON lease_refs (kind, ref);

-- What a transaction has forgotten and is still to be deleted from the disk.
CREATE TABLE trash (
  path TEXT PRIMARY KEY                    -- relative to the store's root
) WITHOUT ROWID;
