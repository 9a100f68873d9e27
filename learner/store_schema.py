"""The tables of the learner's database, and what may become of an episode."""

DISPOSITIONS = ("trained", "filtered", "surplus", "eval", "demonstration", "aborted")
SCHEMA = """
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS updates (
    update_id INTEGER PRIMARY KEY, task_index INTEGER NOT NULL, iteration INTEGER NOT NULL,
    checkpoint TEXT NOT NULL, checkpoint_sha256 TEXT NOT NULL, version TEXT NOT NULL,
    parent TEXT NOT NULL, metrics TEXT NOT NULL, activated INTEGER NOT NULL DEFAULT 0,
    committed_unix_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS episodes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, episode_id TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL,
    order_id TEXT NOT NULL, slot_id TEXT NOT NULL, suite TEXT NOT NULL, task TEXT NOT NULL,
    split TEXT NOT NULL, init_state INTEGER NOT NULL, phase TEXT NOT NULL, version TEXT NOT NULL,
    outcome TEXT NOT NULL, steps INTEGER NOT NULL, counted INTEGER NOT NULL, file TEXT NOT NULL,
    disposition TEXT, update_id INTEGER REFERENCES updates(update_id));
CREATE UNIQUE INDEX IF NOT EXISTS one_counted_per_slot
    ON episodes(slot_id) WHERE counted = 1 AND slot_id <> '';
CREATE INDEX IF NOT EXISTS episodes_by_order ON episodes(order_id);
CREATE TABLE IF NOT EXISTS quarantined (
    episode_id TEXT NOT NULL, sha256 TEXT NOT NULL, reason TEXT NOT NULL, unix_s REAL NOT NULL,
    PRIMARY KEY (episode_id, sha256));
CREATE TABLE IF NOT EXISTS rejected (  -- the agent has still to be told of these
    episode_id TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS undone (  -- updates that were taken back, to be made again
    version TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS refused_orders (
    order_id TEXT PRIMARY KEY, reason TEXT NOT NULL, unix_s REAL NOT NULL);
"""
