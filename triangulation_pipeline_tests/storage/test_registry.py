import hashlib
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import Engine, event, update
from sqlalchemy.exc import IntegrityError

from triangulation_pipeline.jobs.states import JobRecord
from triangulation_pipeline.storage.engine import MOST_TRIES, writing
from triangulation_pipeline.storage.errors import ProductionChanged, StorageError
from triangulation_pipeline.storage.evaluations import (
    EvaluationRecord,
    NewEvaluation,
    get_evaluation,
    record_evaluation,
)
from triangulation_pipeline.storage.registry import (
    ModelRecord,
    NewModel,
    find_production_model,
    find_referred_model,
    get_model_by_id,
    get_model_of_job,
    promote_model,
    register_model,
    rollback_model,
)
from triangulation_pipeline.storage.tables import models
from triangulation_pipeline_tests.storage.model_rows import get_model, list_models

MakeJob = Callable[[], JobRecord]


def weights_digest(job_id: object, sha256: object) -> str:
    """That of weights that no other job has trained."""
    return hashlib.sha256(f"{job_id} {sha256}".encode()).hexdigest()


def register(engine: Engine, job: JobRecord, **changes) -> ModelRecord:
    values = {
        "model_name": "locator",
        "model_architecture": "attention",
        "pytorch_model_location": "/store/best_model.pth",
        "sha256": "a" * 64,
        "epoch": 3,
        "trained_by_job_id": job.id,
        "synthetic_dataset_id": job.synthetic_dataset_id,
        "network_name": "test",
        "network_digest": "d" * 64,
        "hyperparameters": {"layers": 2},
        "metrics": {"test_rmse_m": 31.5, "val_rmse_good_geom_m": None},
        "passed": False,
        "promotion_reason": "worse than production",
    } | changes
    values.setdefault("weights_digest", weights_digest(values["trained_by_job_id"], values["sha256"]))
    if "champion_id" in values:
        champion_id = values.pop("champion_id")
        return register_model(engine, NewModel(**values), champion_id).model
    for _ in range(100):
        champion = find_production_model(engine, str(values["model_name"]))
        with suppress(ProductionChanged):
            return register_model(engine, NewModel(**values), champion and champion.id).model
    raise AssertionError("another version is in production each time")


def evaluate(engine: Engine, job: JobRecord, **changes) -> str:
    values = {
        "training_job_id": job.id,
        "epoch": 3,
        "checkpoint_sha256": "a" * 64,
        "synthetic_dataset_id": job.synthetic_dataset_id,
        "metrics": {"test_rmse_m": 31.5},
        "visualization_paths": {"error_map": "/store/map.png"},
    } | changes
    values.setdefault("weights_digest", weights_digest(values["training_job_id"], values["checkpoint_sha256"]))
    return record_evaluation(engine, NewEvaluation(**values))


EARLIER = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = EARLIER + timedelta(days=3)


def test_a_version_has_what_was_registered_and_nothing_else(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    parent = register(engine, make_job())
    said: dict[str, Any] = {
        "model_name": "locator",
        "model_architecture": "regression",
        "pytorch_model_location": "/store/mine.pth",
        "sha256": "b" * 64,
        "weights_digest": "c" * 64,
        "epoch": 17,
        "trained_by_job_id": job.id,
        "synthetic_dataset_id": str(job.synthetic_dataset_id),
        "network_name": "italy",
        "network_digest": "e" * 64,
        "hyperparameters": {"layers": 2},
        "metrics": {"test_rmse_m": 31.5},
        "passed": True,
        "promotion_reason": "Promoted: good.",
        "parent_model_id": parent.id,
    }
    ids = ("trained_by_job_id", "synthetic_dataset_id", "parent_model_id")
    with time_machine.travel(EARLIER, tick=False):
        registration = register_model(engine, NewModel(**said | {name: said[name].upper() for name in ids}))
    assert registration.is_new
    assert registration.model == ModelRecord(
        **said,
        id=registration.model.id,
        version=2,
        onnx_model_location=None,
        onnx_sha256=None,
        is_active=True,
        is_production=True,
        promoted=True,
        created_at=EARLIER,
        production_since=EARLIER,
    )
    assert registration.model.network == "italy (eeeeeeee)"
    # What is registered again says so, and takes all that may differ.
    changed = {
        "model_architecture": "triangulation",
        "pytorch_model_location": "/store/other.pth",
        "epoch": 18,
        "hyperparameters": {"layers": 3},
        "metrics": {"test_rmse_m": 30.5},
        "passed": False,
        "promotion_reason": "Not promoted.",
        "parent_model_id": None,
    }
    with time_machine.travel(LATER, tick=False):
        again = register_model(engine, NewModel(**said | changed))
    assert not again.is_new
    assert again.model == replace(registration.model, **changed, promoted=False)


def test_an_evaluation_has_what_was_found_and_nothing_else(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    said: dict[str, Any] = {
        "training_job_id": job.id,
        "epoch": 17,
        "checkpoint_sha256": "b" * 64,
        "weights_digest": "c" * 64,
        "synthetic_dataset_id": str(job.synthetic_dataset_id),
        "metrics": {"test_rmse_m": 31.5},
        "visualization_paths": {"error_map": "/store/map.png"},
    }
    ids = ("training_job_id", "synthetic_dataset_id")
    with time_machine.travel(EARLIER, tick=False):
        found = record_evaluation(engine, NewEvaluation(**said | {name: said[name].upper() for name in ids}))
    first = EvaluationRecord(**said, id=found, model_id=None, evaluated_at=EARLIER)
    assert get_evaluation(engine, found.upper()) == first
    changed = {"epoch": 18, "weights_digest": "d" * 64, "metrics": {}, "visualization_paths": {"scatter": "/s"}}
    with time_machine.travel(LATER, tick=False):
        assert record_evaluation(engine, NewEvaluation(**said | changed)) == found
    assert get_evaluation(engine, found) == replace(first, **changed, evaluated_at=LATER)


def test_versions_follow_each_other_by_name(engine: Engine, make_job: MakeJob) -> None:
    first = register(engine, make_job())
    second = register(engine, make_job())
    other = register(engine, make_job(), model_name="other")
    assert [model.version for model in (first, second, other)] == [1, 2, 1]
    assert first.metrics == {"test_rmse_m": 31.5, "val_rmse_good_geom_m": None}
    assert first.onnx_model_location is None
    assert [(m.model_name, m.version, m.is_active) for m in list_models(engine)] == [
        ("locator", 2, True),
        ("locator", 1, False),
        ("other", 1, True),
    ]
    assert get_model(engine, "locator") == second
    assert get_model(engine, "locator", 1).id == first.id


def test_production_moves_only_by_promotion(engine: Engine, make_job: MakeJob) -> None:
    def in_production() -> list[tuple[str, int]]:
        return [(model.model_name, model.version) for model in list_models(engine) if model.is_production]

    register(engine, make_job())
    assert in_production() == []
    register(engine, make_job(), passed=True, promotion_reason="better")
    register(engine, make_job(), passed=False)
    register(engine, make_job(), model_name="other", passed=True)
    assert in_production() == [("locator", 2), ("other", 1)]
    register(engine, make_job(), passed=True)
    assert in_production() == [("locator", 4), ("other", 1)]
    assert get_model(engine, "locator", 2).promoted  # what was decided then stays on record


def test_the_same_file_of_a_job_is_registered_once(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    first = register(engine, job)
    assert register(engine, job) == first
    assert register(engine, job, sha256="b" * 64).version == 2
    assert register(engine, make_job()).version == 3


def test_equal_weights_of_other_jobs_are_one_version(engine: Engine, make_job: MakeJob) -> None:
    """The row names the file that was there last, as the first may be lost; its place in the registry stays."""
    first_job, second_job = make_job(), make_job()
    digest = "9" * 64
    first = register(engine, first_job, weights_digest=digest, passed=True)
    evaluation = evaluate(engine, first_job, weights_digest=digest)
    newer = register(engine, make_job(), passed=True)
    again = register(
        engine,
        second_job,
        weights_digest=digest,
        sha256="b" * 64,
        pytorch_model_location="/store/second.pth",
        passed=True,
        promotion_reason="Promoted: as good as ever.",
    )
    assert again == replace(
        first,
        is_production=False,
        is_active=False,
        sha256="b" * 64,
        pytorch_model_location="/store/second.pth",
        trained_by_job_id=second_job.id,
        synthetic_dataset_id=str(second_job.synthetic_dataset_id),
        promotion_reason="Promoted: as good as ever.",
    )
    assert [(model.version, model.is_production, model.is_active) for model in list_models(engine)] == [
        (2, True, True),
        (1, False, False),
    ]
    assert get_model(engine, "locator").id == newer.id
    # Both jobs find it, and so do evaluations of any job's file.
    for job in (first_job, second_job):
        assert get_model_of_job(engine, job.id).id == first.id
        later = evaluate(engine, job, weights_digest=digest, synthetic_dataset_id=make_job().synthetic_dataset_id)
        assert get_evaluation(engine, later).model_id == first.id
    assert get_evaluation(engine, evaluation).model_id == first.id
    # Under another name they are another model.
    assert register(engine, make_job(), weights_digest=digest, model_name="other").version == 1


def test_equal_weights_that_meet_a_milder_check_are_promoted(engine: Engine, make_job: MakeJob) -> None:
    strict = register(engine, make_job(), weights_digest="9" * 64, passed=False)
    mild = register(engine, make_job(), weights_digest="9" * 64, passed=True)
    assert (mild.id, strict.is_production, mild.is_production) == (strict.id, False, True)
    # In production it stays, whatever is said of it next.
    assert register(engine, make_job(), weights_digest="9" * 64, passed=False).is_production


@pytest.mark.parametrize("how", ["by itself", "by hand", "before that was written down"])
def test_what_had_to_leave_production_does_not_come_back_by_being_registered_again(
    engine: Engine, make_job: MakeJob, how: str
) -> None:
    register(engine, make_job(), passed=True)
    job = make_job()
    if how == "by hand":  # as one that was held back when it was registered
        register(engine, job, passed=True, network_digest="e" * 64)
        promote_model(engine, "locator", 2)
    else:
        register(engine, job, passed=True)
    assert rollback_model(engine, "locator").model.version == 1
    if how == "before that was written down":  # as an older version left its rows
        with writing(engine) as connection:
            connection.execute(update(models).where(models.c.version == 2).values(production_since=None))
    assert not register(engine, job, passed=True).is_production
    assert in_production(engine) == 1


def test_equal_weights_at_once_are_one_version(engine: Engine, make_job: MakeJob) -> None:
    jobs = [make_job() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda job: register(engine, job, weights_digest="9" * 64, passed=True), jobs))
    assert {model.id for model in found} == {model.id for model in list_models(engine)}
    assert len(list_models(engine)) == 1


def test_a_row_without_a_digest_is_known_by_its_file(engine: Engine, make_job: MakeJob) -> None:
    """As an older version left it, which an equal training does not find."""
    old_job = make_job()
    old = register(engine, old_job)
    with writing(engine) as connection:
        connection.execute(update(models).values(weights_digest=None))
    new = register(engine, make_job(), weights_digest="9" * 64)
    assert new.version == 2
    # The digest stands once a name: the row of old stays without.
    assert register(engine, old_job, weights_digest="9" * 64) == replace(old, is_active=False, weights_digest=None)
    assert register(engine, old_job, weights_digest="8" * 64).weights_digest == "8" * 64


def test_registering_at_once_gives_each_its_version(engine: Engine, make_job: MakeJob) -> None:
    jobs = [make_job() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(lambda job: register(engine, job, passed=True).version, jobs))
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]
    assert [model.version for model in list_models(engine) if model.is_active] == [6]
    assert [model.version for model in list_models(engine) if model.is_production] == [6]


def test_one_job_registering_at_once_gives_one_model(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda _: register(engine, job), range(4)))
    assert len({record.id for record in records}) == 1


@pytest.mark.parametrize("losses", [2, MOST_TRIES])
def test_a_lost_race_is_tried_again_but_not_for_ever(engine: Engine, make_job: MakeJob, losses: int) -> None:
    """A row of the same version slips in before ours, as it can where writers do not exclude each other."""
    rivals, job = [make_job() for _ in range(losses)], make_job()
    register(engine, make_job())

    def slip_in(_connection, cursor, statement: str, _parameters, _context, _many) -> None:
        if statement.startswith("INSERT INTO models") and rivals:
            columns = [column.name for column in models.columns]
            copied = {"id": f"'{uuid.uuid4()}'", "trained_by_job_id": f"'{rivals.pop().id}'", "version": "version + 1"}
            copied["weights_digest"] = f"'{uuid.uuid4()}'"
            cursor.execute(
                f"INSERT INTO models ({', '.join(columns)}) "
                f"SELECT {', '.join(copied.get(name, name) for name in columns)} FROM models ORDER BY version LIMIT 1"
            )

    event.listen(engine, "before_cursor_execute", slip_in)
    if losses < MOST_TRIES:
        assert register(engine, job).version == 2
        assert rivals == []
    else:
        with pytest.raises(StorageError, match="other processes kept writing"):
            register(engine, job)
    event.remove(engine, "before_cursor_execute", slip_in)
    assert sum(model.is_active for model in list_models(engine)) == 1


def test_a_version_cannot_be_there_twice(engine: Engine, make_job: MakeJob) -> None:
    register(engine, make_job())
    register(engine, make_job())
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.execute(update(models).values(version=1))


def test_an_evaluation_is_replaced_under_its_id(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    first = evaluate(engine, job)
    assert evaluate(engine, job, metrics={"test_rmse_m": None}) == first
    found = get_evaluation(engine, first)
    assert found.metrics == {"test_rmse_m": None}
    assert found.visualization_paths == {"error_map": "/store/map.png"}
    assert found.model_id is None
    assert evaluate(engine, job, checkpoint_sha256="b" * 64) != first
    assert evaluate(engine, job, synthetic_dataset_id=make_job().synthetic_dataset_id) != first
    assert evaluate(engine, make_job(), synthetic_dataset_id=job.synthetic_dataset_id) != first
    assert get_evaluation(engine, first) == found


def test_evaluations_and_models_find_each_other(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    before = evaluate(engine, job)
    of_equal_bytes = evaluate(engine, make_job())
    model = register(engine, job)
    after = evaluate(engine, job, synthetic_dataset_id=make_job().synthetic_dataset_id)
    evaluate(engine, job)
    assert get_evaluation(engine, before).model_id == model.id
    assert get_evaluation(engine, after).model_id == model.id
    assert get_evaluation(engine, of_equal_bytes).model_id is None


def test_evaluations_of_other_weights_and_of_other_names_stay_with_theirs(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    of_another_file = evaluate(engine, job, checkpoint_sha256="b" * 64)
    mine = evaluate(engine, job, weights_digest="9" * 64)
    model = register(engine, job, weights_digest="9" * 64)
    other = register(engine, make_job(), weights_digest="9" * 64, model_name="other")
    assert other.id != model.id
    assert get_evaluation(engine, mine).model_id == model.id
    assert get_evaluation(engine, of_another_file).model_id is None
    # Later ones belong to the version that came last.
    later = evaluate(engine, make_job(), weights_digest="9" * 64)
    assert get_evaluation(engine, later).model_id == other.id
    # A file is known by its job too, whatever the digest.
    by_file = evaluate(engine, job, weights_digest="8" * 64, synthetic_dataset_id=str(make_job().synthetic_dataset_id))
    assert get_evaluation(engine, by_file).model_id == model.id
    assert get_evaluation(engine, evaluate(engine, job, checkpoint_sha256="c" * 64)).model_id is None


def test_the_model_of_a_job_is_the_one_that_was_registered_last(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    with pytest.raises(StorageError, match=f"no model of job {job.id} is registered"):
        get_model_of_job(engine, job.id)
    versions = []
    for day, digest in enumerate("ab"):
        with time_machine.travel(EARLIER + timedelta(days=day), tick=False):
            versions.append(register(engine, job, sha256=digest * 64))
    register(engine, make_job(), sha256="c" * 64)
    assert get_model_of_job(engine, job.id.upper()) == replace(versions[1], is_active=False)
    with writing(engine) as connection:
        earlier = models.c.id == versions[1].id
        connection.execute(update(models).where(earlier).values(created_at=EARLIER - timedelta(days=1)))
    assert get_model_of_job(engine, job.id).id == versions[0].id


def test_one_file_has_one_name(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    before = [register(engine, job), register(engine, make_job())]
    with pytest.raises(StorageError, match=r"^these weights are registered already, as locator/1$"):
        register(engine, job, model_name="other")
    assert list_models(engine) == [before[1], replace(before[0], is_active=False)]


def test_a_model_and_an_evaluation_written_at_once_are_linked(engine: Engine, make_job: MakeJob) -> None:
    """The evaluation is written while the transaction that registers the model has looked for evaluations already."""
    job = make_job()
    looked, evaluating = threading.Event(), threading.Event()

    def after_the_link(_connection, _cursor, statement: str, _parameters, _context, _many) -> None:
        if statement.startswith("UPDATE model_evaluations SET model_id"):
            looked.set()
            assert evaluating.wait(10)
            time.sleep(0.1)

    event.listen(engine, "after_cursor_execute", after_the_link)
    with ThreadPoolExecutor(2) as pool:
        model = pool.submit(register, engine, job)
        assert looked.wait(10)
        evaluation = pool.submit(evaluate, engine, job)
        evaluating.set()
        assert get_evaluation(engine, evaluation.result()).model_id == model.result().id


def test_a_model_is_referred_to_by_name_version_or_id(engine: Engine, make_job: MakeJob) -> None:
    """A name means the version in production, and where none is, the newest."""
    job = make_job()
    first, second = (register(engine, job, sha256=digest * 64, passed=False) for digest in "ab")
    assert find_referred_model(engine, "locator").id == second.id
    assert find_referred_model(engine, "locator:1").id == first.id
    for text in (first.id, first.id.upper(), first.id.replace("-", "")):
        assert find_referred_model(engine, text).id == first.id
    assert find_referred_model(engine, "locator/1").id == first.id
    with pytest.raises(StorageError, match="no version of model 'locator' is in production"):
        find_referred_model(engine, "locator@production")
    third = register(engine, job, sha256="c" * 64, passed=True)
    newest = register(engine, job, sha256="d" * 64, passed=False)
    assert find_referred_model(engine, "locator").id == third.id
    # What goes on stays with what it was begun from, where that is what was meant.
    assert find_referred_model(engine, "locator@production").id == third.id
    for text in ("locator", "locator:1", "locator/1", "locator@production", first.id):
        assert find_referred_model(engine, text, first.id).id == first.id
    assert find_referred_model(engine, "locator:4", first.id).id == newest.id
    other = register(engine, make_job(), model_name="other")
    assert find_referred_model(engine, "other", first.id).id == other.id
    assert find_referred_model(engine, newest.id, first.id).id == newest.id
    with pytest.raises(StorageError, match="there is no model"):
        find_referred_model(engine, "locator", str(uuid.uuid4()))
    for missing in ("finder", "locator:9", str(uuid.uuid4())):
        with pytest.raises(StorageError, match="there is no model"):
            find_referred_model(engine, missing)


def test_what_does_not_exist_is_named(engine: Engine, make_job: MakeJob) -> None:
    job, unknown = make_job(), str(uuid.uuid4())
    before = register(engine, job)
    with pytest.raises(StorageError, match="there is no model 'finder' in the registry"):
        find_referred_model(engine, "finder")
    with pytest.raises(StorageError, match="there is no model 'locator/7'"):
        find_referred_model(engine, "locator:7")
    with pytest.raises(StorageError, match=f"there is no model {unknown} in the registry"):
        get_model_by_id(engine, unknown)
    with pytest.raises(StorageError, match=f"there is no evaluation {unknown}"):
        get_evaluation(engine, unknown)
    with pytest.raises(StorageError, match=f"there is no training job {unknown}"):
        register(engine, job, trained_by_job_id=unknown)
    with pytest.raises(StorageError, match=f"there is no training job {unknown}"):
        evaluate(engine, job, training_job_id=unknown)
    for act in (register, evaluate):
        with pytest.raises(StorageError, match=f"there is no dataset {unknown}"):
            act(engine, job, synthetic_dataset_id=unknown)
    assert list_models(engine) == [before]


@pytest.mark.parametrize(
    ("act", "changes", "says"),
    [
        (register, {"metrics": {"a": float("nan")}}, r"metrics\.a must be a finite number or null"),
        (register, {"hyperparameters": {"b": float("inf")}}, r"hyperparameters\.b must be a finite number or null"),
        (register, {"trained_by_job_id": "1"}, "trained_by_job_id must be a UUID"),
        (register, {"synthetic_dataset_id": "2"}, "synthetic_dataset_id must be a UUID"),
        (register, {"parent_model_id": "3"}, "parent_model_id must be a UUID"),
        (evaluate, {"metrics": {"a": float("nan")}}, r"metrics\.a must be a finite number or null"),
        (evaluate, {"visualization_paths": {"map": "\0"}}, r"visualization_paths\.map must be text without zero"),
        (evaluate, {"training_job_id": "4"}, "training_job_id must be a UUID"),
        (evaluate, {"synthetic_dataset_id": "5"}, "synthetic_dataset_id must be a UUID"),
    ],
)
def test_what_no_row_can_hold_is_refused(
    engine: Engine, make_job: MakeJob, act: Callable[..., object], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        act(engine, make_job(), **changes)
    assert list_models(engine) == []
    for find in (get_model_by_id, get_evaluation, get_model_of_job):
        with pytest.raises(ValueError, match=r"(model|evaluation|job)_id must be a UUID of 36 characters, got '1'"):
            find(engine, "1")


def test_back_and_forth_between_versions(engine: Engine, make_job: MakeJob) -> None:
    def version() -> int | None:
        model = find_production_model(engine, "locator")
        return None if model is None else model.version

    with pytest.raises(StorageError, match="no version of model 'locator' is in production"):
        rollback_model(engine, "locator")
    register(engine, make_job(), passed=True)
    with pytest.raises(StorageError, match="no version before locator/1 was ever in production"):
        rollback_model(engine, "locator")
    register(engine, make_job(), passed=False, promotion_reason="Not promoted: too wide.")
    register(engine, make_job(), passed=True)
    register(engine, make_job(), passed=True)
    register(engine, make_job(), passed=True, model_name="other")
    assert version() == 4
    assert rollback_model(engine, "locator").model.version == version() == 3
    assert rollback_model(engine, "locator").model.version == version() == 1  # 2 never was in production
    assert promote_model(engine, "locator", 4).model.version == version() == 4
    assert (
        rollback_model(engine, "locator").model.version == version() == 1
    )  # which was in production before, and not 3
    assert promote_model(engine, "locator", 4).model.version == version() == 4
    since = get_model(engine, "locator", 4).production_since
    assert promote_model(engine, "locator", 4).model.production_since == since
    with pytest.raises(StorageError, match=r"locator/2 cannot go into production\. Not promoted: too wide\."):
        promote_model(engine, "locator", 2)
    with pytest.raises(StorageError, match="there is no model 'locator/9'"):
        promote_model(engine, "locator", 9)
    assert version() == 4
    assert [model.model_name for model in list_models(engine) if model.is_production] == ["locator", "other"]


def test_production_has_a_beginning_and_a_predecessor(engine: Engine, make_job: MakeJob) -> None:
    register(engine, make_job(), model_name="other")
    register(engine, make_job(), model_name="other", passed=True)
    with pytest.raises(StorageError, match="no version before other/2 was ever in production"):
        rollback_model(engine, "other")
    for passed in (True, False, True):
        with time_machine.travel(EARLIER, tick=False):
            register(engine, make_job(), passed=passed)
    first, second, third = (get_model(engine, "locator", version) for version in (1, 2, 3))
    assert [model.production_since for model in (first, second, third)] == [EARLIER, None, EARLIER]
    with time_machine.travel(LATER, tick=False):
        done = rollback_model(engine, "locator")
    assert done.model == replace(first, is_production=True, production_since=LATER)
    assert done.replaced == third
    assert get_model(engine, "locator", 3) == replace(third, is_production=False)
    again = promote_model(engine, "locator", 1)
    assert (again.model, again.replaced) == (done.model, None)
    done = promote_model(engine, "locator", 3)
    assert (done.model.is_production, done.replaced) == (True, again.model)


def test_the_database_keeps_one_version_in_production(engine: Engine, make_job: MakeJob) -> None:
    register(engine, make_job(), passed=True)
    second = register(engine, make_job())
    for mark in ("is_production", "is_active"):
        first = models.c.version == 1
        with pytest.raises(IntegrityError), writing(engine) as connection:
            connection.execute(update(models).where(first | (models.c.id == second.id)).values({mark: True}))


def test_promoting_at_once_leaves_one_in_production(engine: Engine, make_job: MakeJob) -> None:
    for _ in range(4):
        register(engine, make_job(), passed=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda version: promote_model(engine, "locator", version), (1, 2, 3, 4) * 3))
    assert sum(model.is_production for model in list_models(engine)) == 1


def in_production(engine: Engine) -> int | None:
    model = find_production_model(engine, "locator")
    return None if model is None else model.version


ITALY = {"network_name": "italy", "network_digest": "1" * 64}
MELBOURNE = {"network_name": "melbourne", "network_digest": "2" * 64}


def test_another_network_never_takes_production_by_itself(engine: Engine, make_job: MakeJob) -> None:
    register(engine, make_job(), passed=True, **ITALY)
    job = make_job()
    held_back = register(engine, job, passed=True, promotion_reason="Promoted: good.", **MELBOURNE)
    assert (held_back.passed, held_back.promoted, held_back.is_production) == (True, False, False)
    assert held_back.production_since is None
    assert held_back.promotion_reason == (
        "Not promoted: locator/1, which is in production, is for another network, italy (11111111), and "
        "this one for melbourne (22222222); train it under another model_name, or replace that version by "
        "`triangulation promote locator/2`."
    )
    assert in_production(engine) == 1
    # Registered again it is told the same, with its own number.
    register(engine, make_job(), **ITALY)
    again = register(engine, job, passed=True, promotion_reason="Promoted: good.", **MELBOURNE)
    assert again == replace(held_back, is_active=False)
    # Identity is the digest, whatever the name.
    renamed = register(engine, make_job(), passed=True, network_name="italy", network_digest="3" * 64)
    assert (renamed.promoted, in_production(engine)) == (False, 1)
    assert register(engine, make_job(), passed=True, **ITALY | {"network_name": "Italia"}).promoted
    assert in_production(engine) == 5
    # Under a name of its own nothing is in its way.
    assert register(engine, make_job(), passed=True, model_name="melbourne", **MELBOURNE).is_production


def test_what_did_not_pass_says_that(engine: Engine, make_job: MakeJob) -> None:
    register(engine, make_job(), passed=True, **ITALY)
    worse = register(engine, make_job(), passed=False, promotion_reason="Not promoted: too wide.", **MELBOURNE)
    assert (worse.passed, worse.promoted, worse.promotion_reason) == (False, False, "Not promoted: too wide.")
    with pytest.raises(StorageError, match=r"locator/2 cannot go into production\. Not promoted: too wide\."):
        promote_model(engine, "locator", 2)


def test_by_hand_it_takes_production_and_is_followed(engine: Engine, make_job: MakeJob) -> None:
    italian = register(engine, make_job(), passed=True, **ITALY)
    job = make_job()
    register(engine, job, passed=True, **MELBOURNE)
    done = promote_model(engine, "locator", 2)
    assert (done.model.version, done.replaced and done.replaced.network) == (2, "italy (11111111)")
    assert (done.replaced and done.replaced.id) == italian.id
    assert (done.model.is_production, done.model.promoted, in_production(engine)) == (True, False, 2)
    assert promote_model(engine, "locator", 2).replaced is None
    # Its own network follows by itself from here on, and the one before does not.
    assert register(engine, make_job(), passed=True, **MELBOURNE).promoted
    assert not register(engine, make_job(), passed=True, **ITALY).promoted
    assert in_production(engine) == 3
    # Back is back, over networks as well.
    assert rollback_model(engine, "locator").replaced == replace(get_model(engine, "locator", 3), is_production=True)
    back = rollback_model(engine, "locator")
    assert (back.model.network, back.replaced and back.replaced.network) == ("italy (11111111)", "melbourne (22222222)")
    assert in_production(engine) == 1
    # What had to leave production does not come back by being registered again.
    register(engine, job, passed=True, **MELBOURNE)
    assert in_production(engine) == 1
    promote_model(engine, "locator", 3)
    register(engine, job, passed=True, **MELBOURNE)
    assert in_production(engine) == 3


def test_a_verdict_on_what_is_no_longer_in_production_is_none(engine: Engine, make_job: MakeJob) -> None:
    """Two challengers met the same champion: the second has to meet the first."""
    champion = register(engine, make_job(), passed=True)
    first = register(engine, make_job(), passed=True, champion_id=champion.id)
    job, before = make_job(), list_models(engine)
    for known, network in ((champion.id, {}), (None, {}), (champion.id, MELBOURNE), (None, MELBOURNE)):
        with pytest.raises(ProductionChanged, match="locator/2 went into production while another version"):
            register(engine, job, passed=True, champion_id=known, **network)
    assert list_models(engine) == before
    assert register(engine, make_job(), passed=False, champion_id=champion.id).version == 3  # nothing hangs on it
    assert register(engine, job, passed=True, champion_id=first.id).promoted


def test_a_step_that_is_repeated_finds_its_own_version_in_production(engine: Engine, make_job: MakeJob) -> None:
    """Which is no change behind its back."""
    for champion_id in (None, register(engine, make_job(), passed=True, model_name="second").id):
        name, job = "first" if champion_id is None else "second", make_job()
        once = register(engine, job, passed=True, champion_id=champion_id, model_name=name)
        assert register(engine, job, passed=True, champion_id=champion_id, model_name=name) == once
        assert (once.promoted, once.is_production) == (True, True)


def test_networks_registering_at_once_leave_one_of_them_in_production(engine: Engine, make_job: MakeJob) -> None:
    jobs = [make_job() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        registered = list(
            pool.map(
                lambda job, i: register(engine, job, passed=True, **(ITALY, MELBOURNE)[i % 2]), jobs, range(len(jobs))
            )
        )
    promoted = [model for model in registered if model.promoted]
    assert {model.network for model in promoted} == {min(registered, key=lambda model: model.version).network}
    assert len(promoted) == 3
    assert in_production(engine) == max(model.version for model in promoted)


def test_a_promotion_by_hand_stands_against_a_registration_at_the_same_time(engine: Engine, make_job: MakeJob) -> None:
    """It comes while the transaction that registers has seen what is in production."""
    italian = register(engine, make_job(), passed=True, **ITALY)
    register(engine, make_job(), passed=True, **MELBOURNE)
    looked, job = threading.Event(), make_job()

    def after_the_look(_connection, _cursor, statement: str, _parameters, context, _many) -> None:
        if statement.startswith("UPDATE models SET is_active"):
            looked.set()
            time.sleep(0.5)

    event.listen(engine, "before_cursor_execute", after_the_look)
    with ThreadPoolExecutor(2) as pool:
        registered = pool.submit(register, engine, job, passed=True, champion_id=italian.id, **ITALY)
        assert looked.wait(10)
        done = pool.submit(promote_model, engine, "locator", 2).result()
        assert registered.result().promoted
    event.remove(engine, "before_cursor_execute", after_the_look)
    assert (done.replaced and done.replaced.version, in_production(engine)) == (3, 2)


def test_a_fine_tuned_model_names_its_parent(engine: Engine, make_job: MakeJob) -> None:
    parent = register(engine, make_job())
    child = register(engine, make_job(), parent_model_id=parent.id)
    assert get_model_by_id(engine, child.id).parent_model_id == parent.id
    unknown = str(uuid.uuid4())
    with pytest.raises(StorageError, match=f"there is no model {unknown} in the registry"):
        register(engine, make_job(), parent_model_id=unknown)
