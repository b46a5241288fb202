-- Upkeep: what lists show is in rows, what keeps a thing is told, what was checked is remembered.

-- From the config, so that a list of images reads no document; NULL in rows of an older orlop.
ALTER TABLE images ADD COLUMN platform TEXT;
ALTER TABLE images ADD COLUMN created TEXT;
-- When it was last pulled, prepared or committed: policies keep what was used lately.
ALTER TABLE images ADD COLUMN used_at REAL NOT NULL DEFAULT 0;
UPDATE images SET used_at = updated_at;
CREATE INDEX images_by_manifest ON images (manifest_digest);

-- What an operation is, and whose: for those who ask why something is kept.
ALTER TABLE leases ADD COLUMN what TEXT NOT NULL DEFAULT '';
ALTER TABLE leases ADD COLUMN pid INTEGER NOT NULL DEFAULT 0;

-- Roots of collection that a caller made: they keep a thing until they are taken back, or expire.
CREATE TABLE pins (
  namespace  TEXT NOT NULL,
  name       TEXT NOT NULL,
  kind       TEXT NOT NULL,                -- config, layer, chain or blob
  ref        TEXT NOT NULL,
  created_at REAL NOT NULL,
  expires_at REAL,                         -- NULL: never
  PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
CREATE INDEX pins_by_ref ON pins (kind, ref);

-- When a layer's bytes were last found to be what its diff ID says; 0 for never.
ALTER TABLE layers ADD COLUMN checked_at REAL NOT NULL DEFAULT 0;

-- Boots of the machine in which something was written that is not synced (Settings.durable is off).
CREATE TABLE unsynced (
  boot TEXT PRIMARY KEY
) WITHOUT ROWID;

CREATE INDEX prepared_by_image ON prepared (namespace, image);
CREATE INDEX root_folders_by_folder ON root_folders (folder);
-- Roots with mapped ids are few, and who shares their maps is asked at every Cleanup.
CREATE INDEX prepared_by_maps ON prepared (uid_map, gid_map) WHERE uid_map != '';
CREATE INDEX prepared_by_chain_and_maps ON prepared (chain_id, uid_map, gid_map) WHERE uid_map != '';
