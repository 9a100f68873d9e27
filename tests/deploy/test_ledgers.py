"""What counts as an achievement of a process that is started again and again."""

import sqlite3
from pathlib import Path

from finished_run import FinishedRun

from deploy.local.ledgers import achieved


def test_only_what_was_ordered_is_a_learners_achievement(tmp_path: Path) -> None:
    made = FinishedRun(tmp_path / "run")
    made.add_everything()
    made.write()
    path = tmp_path / "run" / "learner" / "learner.db"
    before = achieved(tmp_path / "run", "learner")
    with sqlite3.connect(path) as ledger:
        ((counted,),) = ledger.execute("SELECT COUNT(*) FROM episodes WHERE counted = 1")
        ((updates,),) = ledger.execute("SELECT COUNT(*) FROM updates")
        assert before == counted + updates > 0
        columns = [row[1] for row in ledger.execute("PRAGMA table_info(episodes)")]
        chosen = {"seq": "NULL", "episode_id": "'probe'", "order_id": "''", "counted": "0",
                  "outcome": "'aborted'", "slot_id": "''"}  # fmt: skip
        values = ", ".join(chosen.get(column, column) for column in columns)
        ledger.execute(f"INSERT INTO episodes SELECT {values} FROM episodes LIMIT 1")
    assert achieved(tmp_path / "run", "learner") == before
