from pathlib import Path

import pytest

from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.objects import S3Location
from triangulation_pipeline.storage.settings import dagster_home, read_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DAGSTER_HOME", "TRIANGULATION_DATABASE_URL", "TRIANGULATION_OBJECT_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults_lie_in_the_current_folder(tmp_path: Path) -> None:
    settings = read_settings()
    assert settings.database_url == f"sqlite:///{tmp_path}/.dagster/triangulation.db"
    assert settings.object_store == tmp_path / ".dagster" / "objects"


def test_defaults_and_relative_places_follow_dagster_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    assert read_settings().database_url == f"sqlite:///{home}/.dagster/triangulation.db"
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", "sqlite:///data/my.db")
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", "data/objects")
    settings = read_settings()
    assert settings.database_url == f"sqlite:///{home}/data/my.db"
    assert settings.object_store == home / "data" / "objects"


def test_a_home_that_is_empty_is_the_current_folder_and_a_relative_one_is_seen_from_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for given, home_folder in (("", tmp_path), ("mine", tmp_path / "mine"), (str(tmp_path / "abs"), tmp_path / "abs")):
        monkeypatch.setenv("DAGSTER_HOME", given)
        assert dagster_home() == home_folder
        assert read_settings().object_store == home_folder / ".dagster" / "objects"


def test_a_users_home_is_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("DAGSTER_HOME", "~/dagster")
    assert read_settings().database_url == f"sqlite:///{tmp_path}/me/dagster/.dagster/triangulation.db"
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", " sqlite:///~/my.db ")
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", " ~/objects ")
    settings = read_settings()
    assert settings.database_url == f"sqlite:///{tmp_path}/me/my.db"
    assert settings.object_store == tmp_path / "me" / "objects"


def test_all_that_is_wrong_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", "")
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", "http://me:s3cret@host")
    with pytest.raises(
        ValueError, match=r"^TRIANGULATION_DATABASE_URL: is empty; .*; TRIANGULATION_OBJECT_STORE: must"
    ) as caught:
        read_settings()
    assert str(caught.value).endswith(": must be a folder or s3://bucket/prefix, and no other URL")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_absolute_places_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", f"sqlite:///{tmp_path}/a.db")
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", f"{tmp_path}/o")
    settings = read_settings()
    assert settings.database_url == f"sqlite:///{tmp_path}/a.db"
    assert settings.object_store == tmp_path / "o"


@pytest.mark.parametrize(
    ("value", "place", "text"),
    [
        ("s3://my-bucket/a/prefix", S3Location("my-bucket", "a/prefix"), "s3://my-bucket/a/prefix"),
        (" S3://my.bucket/prefix/ ", S3Location("my.bucket", "prefix"), "s3://my.bucket/prefix"),
        ("s3://bucket", S3Location("bucket", ""), "s3://bucket"),
        ("s3://bucket/", S3Location("bucket", ""), "s3://bucket"),
        ("s3://abc/A_b.c=d-e", S3Location("abc", "A_b.c=d-e"), "s3://abc/A_b.c=d-e"),
        (f"s3://{'a' * 63}/b", S3Location("a" * 63, "b"), f"s3://{'a' * 63}/b"),
        ("s3://1.2.3a", S3Location("1.2.3a", ""), "s3://1.2.3a"),
    ],
)
def test_a_bucket_is_a_place_for_objects(
    monkeypatch: pytest.MonkeyPatch, value: str, place: S3Location, text: str
) -> None:
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", value)
    assert read_settings().object_store == place
    assert str(place) == text


@pytest.mark.parametrize("name", ["what?", "a?b", "a?b=c"])
def test_no_question_mark_moves_the_database_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """The library would take 'what' for the file, and drop the rest."""
    (tmp_path / name).mkdir()
    for variables in (
        {"TRIANGULATION_DATABASE_URL": f"sqlite:///{tmp_path}/{name}.db"},
        {"TRIANGULATION_DATABASE_URL": f"postgresql://me:s3cret@host/{name}"},
        {"DAGSTER_HOME": str(tmp_path / name)},
        {"DAGSTER_HOME": str(tmp_path / name), "TRIANGULATION_DATABASE_URL": "sqlite:///mine.db"},
    ):
        with monkeypatch.context() as changed:
            for variable, value in variables.items():
                changed.setenv(variable, value)
            with pytest.raises(ValueError, match=r"^[^\n]{1,300}$") as raised:
                open_database(read_settings().database_url)
        assert "has a '?'" in str(raised.value) or "got 'b'" in str(raised.value)
    assert [path.name for path in tmp_path.rglob("*")] == [name]


@pytest.mark.parametrize(
    "variables",
    [
        {"TRIANGULATION_OBJECT_STORE": "~nobody-of-this-name/objects"},
        {"TRIANGULATION_DATABASE_URL": "sqlite:///~nobody-of-this-name/my.db"},
        {"DAGSTER_HOME": "~nobody-of-this-name"},
    ],
)
def test_the_home_of_an_unknown_user_is_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match="there is no user of that name"):
        read_settings()


def test_postgresql_is_taken_as_psycopg_and_its_password_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", "postgresql://me:s3%40cret@host/db?sslmode=require")
    settings = read_settings()
    assert settings.database_url == "postgresql+psycopg://me:s3%40cret@host/db?sslmode=require"
    assert "s3%40cret" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TRIANGULATION_DATABASE_URL", "mysql://me:s3cret@host/db", "'mysql'"),
        ("TRIANGULATION_DATABASE_URL", "postgresql+psycopg2://me:s3cret@host/db", "'postgresql+psycopg2'"),
        ("TRIANGULATION_DATABASE_URL", "postgresql://me:s3cret@host", "must name a database"),
        ("TRIANGULATION_DATABASE_URL", "postgresql://host/db?password=s3cret&options=s3cret", "'options', 'password'"),
        ("TRIANGULATION_DATABASE_URL", "sqlite://", "must name a file"),
        ("TRIANGULATION_DATABASE_URL", "sqlite:///:memory:", "must name a file"),
        ("TRIANGULATION_DATABASE_URL", "sqlite:///file:s3cret?mode=memory&uri=true", "parameters"),
        ("TRIANGULATION_DATABASE_URL", "s3cret", "cannot be read"),
        ("TRIANGULATION_DATABASE_URL", "postgresql://me:s3cret@host:s3cret/db", "cannot be read"),
        ("TRIANGULATION_DATABASE_URL", " ", "is empty"),
        ("TRIANGULATION_OBJECT_STORE", "", "is empty"),
        ("TRIANGULATION_OBJECT_STORE", "s3://me:s3cret@bucket/prefix", "must not hold credentials"),
        ("TRIANGULATION_OBJECT_STORE", "s3://bucket/prefix?secret=s3cret", "takes no parameters"),
        ("TRIANGULATION_OBJECT_STORE", "s3://bucket/prefix#s3cret", "takes no parameters"),
        *(
            ("TRIANGULATION_OBJECT_STORE", f"s3://{bucket}/s3cret", "must name a bucket")
            for bucket in ("ab", "a" * 64, "-ab", "ab-", ".ab", "ab.", "a..b", "a_b", "A-b")
        ),
        *(
            ("TRIANGULATION_OBJECT_STORE", f"s3://bucket/{prefix}", "must have a prefix of names")
            for prefix in ("s3cret//", ".s3cret", "-s3cret", "=s3cret", "s3 cret", "s3cret/ä")
        ),
        ("TRIANGULATION_OBJECT_STORE", "s3:/s3cret", "must be as in s3://bucket/prefix"),
        ("TRIANGULATION_OBJECT_STORE", "s3:s3cret", "must be as in s3://bucket/prefix"),
        ("TRIANGULATION_OBJECT_STORE", "s3://", "must name a bucket"),
        ("TRIANGULATION_OBJECT_STORE", "s3://S3cret/prefix", "must name a bucket"),
        ("TRIANGULATION_OBJECT_STORE", "s3://s3cret:9000/prefix", "must name a bucket"),
        ("TRIANGULATION_OBJECT_STORE", "s3://10.0.0.1/prefix", "must name a bucket"),
        ("TRIANGULATION_OBJECT_STORE", "s3://bucket/../s3cret", "must have a prefix of names"),
        ("TRIANGULATION_OBJECT_STORE", "s3://bucket//s3cret", "must have a prefix of names"),
        ("TRIANGULATION_OBJECT_STORE", "https://host/s3cret", "must be a folder or s3://bucket/prefix"),
    ],
)
def test_a_wrong_value_gives_one_sentence_without_secrets(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable) as caught:
        read_settings()
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert "s3cret" not in message
