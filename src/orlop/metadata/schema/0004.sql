-- Names that mean an index: an image for each of several platforms.

ALTER TABLE images ADD COLUMN index_digest TEXT;  -- NULL where a name means one image and no index
CREATE INDEX images_by_index ON images (index_digest);

-- The images of its index that a name holds.  The row in images is one of them: the one that is meant where
-- nobody says a platform.
CREATE TABLE image_platforms (
  namespace       TEXT NOT NULL,
  name            TEXT NOT NULL,
  manifest_digest TEXT NOT NULL,           -- two of an index may share a config: other compressions
  config_digest   TEXT NOT NULL,
  platform        TEXT NOT NULL,           -- the config's words
  created         TEXT NOT NULL,
  PRIMARY KEY (namespace, name, manifest_digest)
) WITHOUT ROWID;
CREATE INDEX image_platforms_by_config ON image_platforms (config_digest);
CREATE INDEX image_platforms_by_manifest ON image_platforms (manifest_digest);

-- What an index needs beyond its images: itself, indexes in it, and all of what is in it that is no image.
CREATE TABLE index_blobs (
  index_digest TEXT NOT NULL,
  digest       TEXT NOT NULL,
  media_type   TEXT NOT NULL,
  size         INTEGER NOT NULL,
  PRIMARY KEY (index_digest, digest)
) WITHOUT ROWID;
CREATE INDEX index_blobs_by_digest ON index_blobs (digest);
