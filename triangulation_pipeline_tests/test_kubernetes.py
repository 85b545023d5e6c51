"""What can be seen of docker/kubernetes/ without a cluster: the instance that the chart makes of the values, the pods
of runs, and, where a chart is at hand, everything that it renders.

``DAGSTER_HELM_CHART`` names an unpacked chart (``helm pull dagster/dagster --version 1.13.27 --untar``).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._core.code_pointer import CodePointer, FileCodePointer, ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRunStatus
from kubernetes.client import ApiClient

from triangulation_pipeline.client import query
from triangulation_pipeline_tests.conftest import ROOT

FOLDER = ROOT / "docker" / "kubernetes"
README = (FOLDER / "README.md").read_text()
RELEASE = "dagster"
NAMESPACE = "triangulation"
# The oldest and newest of the clusters that are looked after.
CLUSTERS = ("1.32", "1.37")

Documents = list[dict[str, Any]]


class StrictLoader(yaml.SafeLoader):
    """A key written twice is a fault."""


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert len(keys) == len(set(keys)), f"a key is written twice: {keys} {node.start_mark}"
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read(text: str) -> Documents:
    return [document for document in yaml.load_all(text, StrictLoader) if document]


def merge(base: Any, over: Any) -> Any:
    """As helm merges files of values: mappings key by key, everything else replaced."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {
        key: merge(base[key], over[key]) if key in base and key in over else (base | over)[key] for key in base | over
    }


@cache
def values(*files: str) -> Any:
    """What helm makes of the files of values."""
    merged: Any = {}
    for file in files:
        (found,) = read((FOLDER / file).read_text())
        merged = merge(merged, found)
    return merged


PLAIN = ("values.yaml",)
GPU = ("values.yaml", "values-gpu.yaml")


def dagster_yaml(of: Mapping[str, Any]) -> dict[str, Any]:
    """The instance as the chart writes it, but for the databases."""
    daemon, launcher = of["dagsterDaemon"], of["runLauncher"]["config"]["customRunLauncher"]
    monitoring, retries = daemon["runMonitoring"], daemon["runRetries"]
    queue = {
        "dequeue_interval_seconds": daemon["runCoordinator"]["config"]["queuedRunCoordinator"]["dequeueIntervalSeconds"]
    }
    concurrency = of.get("concurrency", {})
    if not concurrency.get("enabled"):
        queue["max_concurrent_runs"] = -1
    logs = of["computeLogManager"]["config"]["s3ComputeLogManager"]
    instance = {
        "scheduler": {"module": "dagster.core.scheduler", "class": "DagsterDaemonScheduler"},
        "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator", "config": queue},
        "run_launcher": launcher,
        "compute_logs": {
            "module": "dagster_aws.s3.compute_log_manager",
            "class": "S3ComputeLogManager",
            "config": {
                "bucket": logs["bucket"],
                "prefix": logs["prefix"],
                "skip_empty_files": logs["skipEmptyFiles"],
                "upload_interval": logs["uploadInterval"],
            },
        },
        "python_logs": {
            "python_log_level": of["pythonLogs"]["pythonLogLevel"],
            "managed_python_loggers": of["pythonLogs"]["managedPythonLoggers"],
        },
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "max_runtime_seconds": monitoring["maxRuntimeSeconds"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "run_retries": {
            "enabled": retries["enabled"],
            "max_retries": retries["maxRetries"],
            "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
        },
        "telemetry": of["telemetry"],
        "retention": {
            kind: {"purge_after_days": of["retention"][kind]["purgeAfterDays"]} for kind in ("sensor", "schedule")
        },
    }
    if concurrency.get("enabled"):
        instance["concurrency"] = {
            "pools": concurrency["pools"],
            "runs": {"max_concurrent_runs": concurrency["runs"]["maxConcurrentRuns"]},
        }
    assert not instance.keys() & of["additionalInstanceConfig"].keys()  # the chart would write such a key twice
    return instance | of["additionalInstanceConfig"]


OURS = ModuleCodePointer("triangulation_pipeline.definitions", "defs")
# Of the webserver and the daemon.
VARIABLES = {
    "DAGSTER_K8S_PIPELINE_RUN_NAMESPACE": NAMESPACE,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
}


@dataclass(frozen=True)
class Cluster:
    """An instance, and what its launcher asks of Kubernetes."""

    instance: dg.DagsterInstance
    create: mock.Mock

    def job_of_a_run(
        self, tags: Mapping[str, str] | None = None, container_context: Any = None, code: CodePointer = OURS
    ) -> dict[str, Any]:
        """The Job of a run with these tags, as the launcher sends it, valid for every cluster."""
        repository = RepositoryPythonOrigin(
            "/opt/venv/bin/python",
            code,
            container_image="registry.example.com/triangulation-pipeline:0.1.0",
            entry_point=["dagster"],
            container_context=container_context,
        )
        run = dg.DagsterRun(
            job_name="train_locator",
            tags=dict(tags or {}),
            status=DagsterRunStatus.STARTING,
            job_code_origin=JobPythonOrigin("train_locator", repository),
        )
        self.instance.add_run(run)
        self.create.reset_mock()
        try:
            self.instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
        except Exception:
            assert not self.create.called
            raise
        ((_, asked),) = self.create.call_args_list
        assert asked["namespace"] == NAMESPACE
        job = ApiClient().sanitize_for_serialization(asked["body"])
        assert_valid(job)
        return dict(job)


@contextmanager
def cluster_of(home: Path, instance_config: Mapping[str, Any]) -> Iterator[Cluster]:
    """The instance of the webserver and the daemon, with its databases in the folder."""
    databases = {"schedule_storage", "run_storage", "event_log_storage"}
    config = {key: value for key, value in instance_config.items() if key not in databases}
    config["storage"] = {"sqlite": {"base_dir": str(home / "storage")}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    with (
        mock.patch.dict(os.environ, VARIABLES),
        mock.patch("kubernetes.config.load_incluster_config"),
        mock.patch("dagster_k8s.launcher.DagsterKubernetesClient") as kubernetes,
        dg.DagsterInstance.from_config(str(home)) as instance,
    ):
        yield Cluster(instance, kubernetes.production_client().create_namespaced_job_with_retries)


def assert_valid(document: Any) -> None:
    """Fits the strict schemas of Kubernetes, in which an unknown key is a fault."""
    for version in CLUSTERS:
        kubernetes_validate.validate(document, version, strict=True)


def assert_restricted(pod: Mapping[str, Any]) -> None:
    """Meets the Pod Security Standard "restricted"."""
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {kind for volume in pod.get("volumes", []) for kind in volume.keys() - {"name"}} <= {"configMap", "secret"}
    common = pod["securityContext"]
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        own = container["securityContext"]
        together = common | own
        assert not own.get("privileged")
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert together["runAsNonRoot"] is True
        # Said by number: images such as PostgreSQL's are root's, and would not start.
        assert together["runAsUser"] == together["runAsGroup"] == 10001
        assert together["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not [port for port in container.get("ports", []) if "hostPort" in port]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_of(tmp_path_factory.mktemp("plain"), dagster_yaml(values(*PLAIN))) as made:
        yield made


def assert_instance(instance: dg.DagsterInstance) -> None:
    """It limits what docker/dagster.yaml limits."""
    containers = yaml.safe_load((ROOT / "docker" / "dagster.yaml").read_text())
    assert type(instance.run_launcher).__name__ == "K8sRunLauncher"
    limits = instance.get_concurrency_config()
    assert limits.pool_config.pool_granularity is not None
    assert limits.pool_config.pool_granularity.value == containers["concurrency"]["pools"]["granularity"]
    assert limits.run_queue_config is not None
    assert limits.run_queue_config.max_concurrent_runs == 4
    monitoring = containers["run_monitoring"] | {"start_timeout_seconds": 600, "max_resume_run_attempts": 0}
    assert instance.get_settings("run_monitoring") == monitoring
    for name in ("run_retries", "python_logs", "telemetry", "nux"):
        assert instance.get_settings(name) == containers[name]
    purged = instance.get_settings("retention")
    assert purged["schedule"] == containers["retention"]["schedule"]
    for kind, days in containers["retention"]["sensor"]["purge_after_days"].items():
        assert purged["sensor"]["purge_after_days"][kind] == days
    logs: Any = instance.compute_log_manager
    assert (type(logs).__name__, logs._s3_bucket, logs._s3_prefix) == (
        "S3ComputeLogManager",
        "triangulation",
        "dagster",
    )


def test_the_instance_loads_with_the_limits_of_the_containers(cluster: Cluster) -> None:
    assert_instance(cluster.instance)


def test_without_the_concurrency_block_dagster_refuses_the_instance(tmp_path: Path) -> None:
    """Why the block is there; the day this fails, it may go."""
    limits = {"concurrency": {"pools": {"granularity": "run"}, "runs": {"max_concurrent_runs": 4}}}
    old = dagster_yaml(values(*PLAIN) | {"concurrency": {}, "additionalInstanceConfig": limits})
    with pytest.raises(dg.DagsterInvalidConfigError, match="max_concurrent_runs"), cluster_of(tmp_path, old):
        pass


def assert_runs_pod(job: Mapping[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    assert_restricted(pod)
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com/triangulation-pipeline:0.1.0"
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert container["resources"]["limits"]["memory"] == "8Gi"
    assert container["resources"]["requests"] == {"cpu": "1", "memory": "2Gi"}
    given = {entry["name"]: entry.get("value") or entry["valueFrom"]["secretKeyRef"] for entry in container["env"]}
    assert given == {
        "DAGSTER_RUN_JOB_NAME": "train_locator",
        "DAGSTER_HOME": "/opt/dagster/dagster_home",
        "DAGSTER_PG_PASSWORD": {"name": "dagster-postgresql", "key": "postgresql-password"},
        "TRIANGULATION_OBJECT_STORE": "s3://triangulation/pipeline",
        "TRIANGULATION_NETWORK_FOLDER": "/networks",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    assert container["envFrom"] == [
        {"secretRef": {"name": "triangulation-database"}},
        {"secretRef": {"name": "triangulation-s3"}},
    ]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {"/networks": "networks"}
    maps = {volume["name"]: volume["configMap"]["name"] for volume in pod["volumes"]}
    assert maps == {"networks": "triangulation-networks"}
    # Whoever makes a run do his bidding gets no rights at the cluster with it.
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "dagster"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400


def gpu_of(job: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    pod = job["spec"]["template"]["spec"]
    gpus = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    return pod.get("nodeSelector"), pod.get("tolerations"), gpus


ON_A_GPU = (
    {"accelerator": "nvidia"},
    [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "1",
)


def test_a_run_gets_its_memory_secrets_files_and_no_rights(cluster: Cluster) -> None:
    job = cluster.job_of_a_run()
    assert_runs_pod(job)
    assert gpu_of(job) == (None, None, None)


def readme_tag() -> str:
    (tag,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    return str(tag)


def test_the_tag_of_the_readme_takes_a_run_to_a_gpu(cluster: Cluster) -> None:
    job = cluster.job_of_a_run({"dagster-k8s/config": readme_tag()})
    assert_runs_pod(job)
    assert gpu_of(job) == ON_A_GPU


def test_the_file_for_gpus_takes_all_runs_there(tmp_path: Path) -> None:
    with cluster_of(tmp_path, dagster_yaml(values(*GPU))) as cluster:
        job = cluster.job_of_a_run()
    assert_runs_pod(job)
    assert gpu_of(job) == ON_A_GPU


HOSTILE: dict[str, dict[str, Any]] = {
    "image": {"container_config": {"image": "attacker/image:1"}},
    "command": {"container_config": {"command": ["sh", "-c", "env"]}},
    "arguments": {"container_config": {"args": ["env"]}},
    "lifecycle": {"container_config": {"lifecycle": {"postStart": {"exec": {"command": ["env"]}}}}},
    "privileged": {"container_config": {"security_context": {"privileged": True}}},
    "privileged in the other spelling": {"container_config": {"securityContext": {"privileged": True}}},
    "root": {"pod_spec_config": {"security_context": {"runAsUser": 0}}},
    "env": {"container_config": {"env": [{"name": "LD_PRELOAD", "value": "/x.so"}]}},
    "env from another's secret": {"container_config": {"env_from": [{"secretRef": {"name": "other"}}]}},
    "mount": {"container_config": {"volume_mounts": [{"name": "host", "mountPath": "/host"}]}},
    "host path": {"pod_spec_config": {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}},
    "host network": {"pod_spec_config": {"host_network": True}},
    "host processes": {"pod_spec_config": {"hostPID": True}},
    "service account": {"pod_spec_config": {"service_account_name": "cluster-admin"}},
    "token": {"pod_spec_config": {"automount_service_account_token": True}},
    "second container": {"pod_spec_config": {"containers": [{"name": "other", "image": "attacker/image:1"}]}},
    "init container": {"pod_spec_config": {"init_containers": [{"name": "other", "image": "attacker/image:1"}]}},
    "labels of the code server": {"pod_template_spec_metadata": {"labels": {"component": "dagster-webserver"}}},
    "namespace": {"job_metadata": {"namespace": "kube-system"}},
    "many pods": {"job_spec_config": {"completions": 1000, "parallelism": 1000}},
    "whole job": {"job_config": {"spec": {}}},
    "among allowed ones": {
        "container_config": {"resources": {"limits": {"cpu": "1"}}, "image": "attacker/image:1"},
        "pod_spec_config": {"node_selector": {"a": "b"}},
    },
    "by replacing": {"merge_behavior": "SHALLOW", "container_config": {"security_context": {}}},
}


@pytest.mark.parametrize("tag", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_tag_may_set_nothing_else(cluster: Cluster, tag: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="fields that violated the allowed list"):
        cluster.job_of_a_run({"dagster-k8s/config": json.dumps(tag)})


@pytest.mark.parametrize("tag", ["{", "[]", '{"pod": {}}', '{"container_config": {"resources": {"hostPath": 1}}}'])
def test_a_tag_that_is_none_starts_no_pod(cluster: Cluster, tag: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        cluster.job_of_a_run({"dagster-k8s/config": tag})


def test_a_tag_that_replaces_keeps_the_pod_restricted(cluster: Cluster) -> None:
    tag = {
        "merge_behavior": "SHALLOW",
        "container_config": {"resources": {"limits": {"memory": "4Gi"}}},
        "pod_spec_config": {"node_selector": {"disk": "fast"}},
    }
    pod = cluster.job_of_a_run({"dagster-k8s/config": json.dumps(tag)})["spec"]["template"]["spec"]
    assert_restricted(pod)
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "dagster"
    assert pod["containers"][0]["resources"] == {"limits": {"memory": "4Gi"}}


def test_the_servers_settings_are_not_the_runs() -> None:
    """In them its memory would be the runs', and the launcher refuses all of them."""
    (server,) = values(*PLAIN)["dagster-user-deployments"]["deployments"]
    assert server["includeConfigInLaunchedRuns"] == {"enabled": False}


def test_a_code_location_may_shape_its_runs_no_more_than_a_tag(cluster: Cluster) -> None:
    with pytest.raises(Exception, match=r"container_config\.env_from"):
        cluster.job_of_a_run(container_context={"k8s": {"env_secrets": ["other"]}})


A_JOB = """
import dagster as dg

@dg.op
def trivial():
    pass

@dg.job
def train_locator():
    trivial()
"""


def test_a_run_and_the_pools_limit_need_no_kubernetes(tmp_path: Path) -> None:
    """The commands of a run's pod and of the daemon's init container, outside any cluster: without a token, and without
    what only the webserver and the daemon have in their environment."""
    code = tmp_path / "code.py"
    code.write_text(A_JOB)
    instance_config = dagster_yaml(values(*PLAIN))
    del instance_config["compute_logs"]  # there is no bucket
    (init,) = values(*PLAIN)["dagsterDaemon"]["extraPrependedInitContainers"]
    with cluster_of(tmp_path, instance_config) as cluster:
        job = cluster.job_of_a_run(code=FileCodePointer(str(code), "train_locator", str(tmp_path)))
        commands = [job["spec"]["template"]["spec"]["containers"][0]["args"], init["command"]]
        here = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        here |= {"DAGSTER_HOME": str(tmp_path), "DAGSTER_PG_PASSWORD": "unused"}
        for command in commands:
            assert command[0] == "dagster"
            done = subprocess.run(
                [sys.executable, "-m", *command], env=here, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stderr
        (pool,) = cluster.instance.event_log_storage.get_pool_limits()
        assert (pool.name, pool.limit) == ("training", 1)
        (run,) = cluster.instance.get_runs()
        assert run.is_success, done.stderr


def test_the_location_is_the_one_of_the_other_deployments() -> None:
    (server,) = values(*PLAIN)["dagsterWebserver"]["workspace"]["servers"]
    (deployment,) = values(*PLAIN)["dagster-user-deployments"]["deployments"]
    assert (server["host"], server["port"]) == (deployment["name"], deployment["port"])
    assert f'$location: String! = "{server["name"]}"' in query("launch_run")


def test_variables_of_server_and_runs_agree() -> None:
    config = values(*PLAIN)
    (server,) = config["dagster-user-deployments"]["deployments"]
    launcher = config["runLauncher"]["config"]["customRunLauncher"]["config"]
    of_server = {entry["name"]: entry["value"] for entry in server["env"]}
    of_runs = dict(entry.split("=", 1) for entry in launcher["env_vars"])
    assert of_runs.items() <= of_server.items()
    assert launcher["env_secrets"] == [secret["name"] for secret in server["envSecrets"]]
    (init,) = config["dagsterDaemon"]["extraPrependedInitContainers"]
    assert init["image"] == "{repository}:{tag}".format(**server["image"])
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["code"]["environment"]
    assert {name for name in compose if name.startswith("TRIANGULATION_")} == {
        *(name for name in of_server if name.startswith("TRIANGULATION_")),
        "TRIANGULATION_DATABASE_URL",  # of a secret
    }


def test_the_readmes_commands_name_what_the_values_name() -> None:
    config = values(*PLAIN)
    (server,) = config["dagster-user-deployments"]["deployments"]
    made = set(re.findall(r"kubectl create (?:secret generic|configmap) (\S+)", README))
    maps = {volume["configMap"]["name"] for volume in server["volumes"]}
    secrets = {config["global"]["postgresqlSecretName"], *(secret["name"] for secret in server["envSecrets"])}
    assert made == maps | secrets
    assert set(re.findall(r"docker/kubernetes/([\w.-]+)", README)) == {
        path.name for path in FOLDER.iterdir() if path.name != "README.md"
    }
    assert f"helm upgrade --install {RELEASE} dagster/dagster --version {dg.__version__} " in README


def policies() -> Documents:
    return read((FOLDER / "network-policies.yaml").read_text())


def connections(labels: Mapping[str, Mapping[str, str]]) -> dict[tuple[str, int], set[str]]:
    """By pod and port that a policy guards, the pods that may connect, all of the namespace."""
    found: dict[tuple[str, int], set[str]] = {}
    for policy in policies():
        assert_valid(policy)
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        (target,) = _selected(policy["spec"]["podSelector"], labels)
        (rule,) = policy["spec"]["ingress"]
        (port,) = rule["ports"]
        assert rule["from"]
        assert all(source.keys() == {"podSelector"} for source in rule["from"])
        sources = [name for source in rule["from"] for name in _selected(source["podSelector"], labels)]
        found[target, port["port"]] = set(sources)
    return found


def _selected(selector: Mapping[str, Any], labels: Mapping[str, Mapping[str, str]]) -> list[str]:
    assert selector["matchLabels"]
    return [name for name, has in labels.items() if selector["matchLabels"].items() <= has.items()]


def test_only_dagsters_own_pods_reach_the_servers(cluster: Cluster) -> None:
    labels = {
        # The chart's, when this was written; those that it renders are looked at below.
        "server": {"component": "user-deployments", "deployment": "triangulation-pipeline"},
        "webserver": {"component": "dagster-webserver"},
        "daemon": {"component": "dagster-daemon", "deployment": "daemon"},
        "run": cluster.job_of_a_run()["spec"]["template"]["metadata"]["labels"],
        "stranger": {"app.kubernetes.io/name": "other"},
    }
    assert connections(labels) == {("server", 4000): {"webserver", "daemon", "run"}, ("webserver", 3000): {"server"}}


# What follows needs the chart.


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """helm, on the chart that ``DAGSTER_HELM_CHART`` names."""
    chart = os.environ.get("DAGSTER_HELM_CHART")
    if not chart:
        pytest.skip("DAGSTER_HELM_CHART names no unpacked chart of Dagster; nothing was rendered")
    program = shutil.which(os.environ.get("HELM", "helm"))
    if program is None:
        pytest.skip("there is no helm, on the path or in HELM; nothing was rendered")
    folder = tmp_path_factory.mktemp("helm")
    environment = os.environ | {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}

    def run(command: list[str], files: tuple[str, ...], *options: str) -> str:
        named = [option for file in files for option in ("-f", str(FOLDER / file))]
        done = subprocess.run(
            [program, *command, chart, *named, "--namespace", NAMESPACE, *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module", params=[PLAIN, GPU], ids=["plain", "gpu"])
def rendered(helm: Any, request: pytest.FixtureRequest) -> tuple[tuple[str, ...], Documents]:
    """What the chart makes of the files of values, with the Job of an upgrade."""
    # The schema of some charts refers to pages in the internet.
    text = helm(["template", RELEASE], request.param, "--set", "migrate.enabled=true", "--skip-schema-validation")
    return request.param, read(text)


def named(documents: Documents, kind: str, name: str) -> dict[str, Any]:
    (found,) = (item for item in documents if item["kind"] == kind and item["metadata"]["name"] == name)
    return found


def test_the_chart_takes_the_values(helm: Any) -> None:
    assert "0 chart(s) failed" in helm(["lint"], GPU, "--skip-schema-validation")


def test_everything_rendered_is_valid_and_restricted(rendered: tuple[tuple[str, ...], Documents]) -> None:
    _, documents = rendered
    pods = 0
    for document in documents:
        assert_valid(document)
        if document["kind"] in {"Deployment", "Job"}:
            assert_restricted(document["spec"]["template"]["spec"])
            pods += 1
    assert pods == 4  # code server, webserver, daemon, migration


def test_the_rendered_instance_is_the_one_above(rendered: tuple[tuple[str, ...], Documents], tmp_path: Path) -> None:
    files, documents = rendered
    text = named(documents, "ConfigMap", f"{RELEASE}-instance")["data"]["dagster.yaml"]
    (config,) = read(text)
    mine = dagster_yaml(values(*files))
    for key in mine:
        assert merge(config[key], mine[key]) == config[key], key  # the chart adds defaults of its own
    assert "max_concurrent_runs" not in config["run_coordinator"]["config"]
    for name in ("schedule_storage", "run_storage", "event_log_storage"):
        (settings,) = config[name]["config"].values()
        assert settings["hostname"] == "postgresql.example.com"
        assert settings["password"] == {"env": "DAGSTER_PG_PASSWORD"}
    with cluster_of(tmp_path, config) as cluster:
        assert_instance(cluster.instance)


def test_what_the_launcher_names_is_rendered(rendered: tuple[tuple[str, ...], Documents], tmp_path: Path) -> None:
    files, documents = rendered
    launcher = values(*files)["runLauncher"]["config"]["customRunLauncher"]["config"]
    named(documents, "ConfigMap", launcher["instance_config_map"])
    named(documents, "ServiceAccount", launcher["service_account_name"])
    for part in ("daemon", "webserver"):
        assert (
            named(documents, "ConfigMap", f"{RELEASE}-{part}-env")["data"]["DAGSTER_K8S_PIPELINE_RUN_NAMESPACE"]
            == NAMESPACE
        )
    (config,) = read(named(documents, "ConfigMap", f"{RELEASE}-instance")["data"]["dagster.yaml"])
    with cluster_of(tmp_path, config) as cluster:
        job = cluster.job_of_a_run()
    assert_runs_pod(job)
    assert gpu_of(job) == (ON_A_GPU if files == GPU else (None, None, None))


def test_the_rendered_servers_know_each_other(rendered: tuple[tuple[str, ...], Documents], cluster: Cluster) -> None:
    _, documents = rendered
    (workspace,) = read(named(documents, "ConfigMap", f"{RELEASE}-workspace-yaml")["data"]["workspace.yaml"])
    (entry,) = (entry["grpc_server"] for entry in workspace["load_from"])
    service = named(documents, "Service", entry["host"])
    assert [port["port"] for port in service["spec"]["ports"]] == [entry["port"]] == [4000]
    assert entry["location_name"] == "triangulation_pipeline"
    named(documents, "Service", f"{RELEASE}-dagster-webserver")
    pods = {
        name: named(documents, "Deployment", deployment)["spec"]["template"]
        for name, deployment in {
            "server": f"{RELEASE}-dagster-user-deployments-triangulation-pipeline",
            "webserver": f"{RELEASE}-dagster-webserver",
            "daemon": f"{RELEASE}-daemon",
        }.items()
    }
    assert service["spec"]["selector"].items() <= pods["server"]["metadata"]["labels"].items()
    (container,) = pods["server"]["spec"]["containers"]
    assert "DAGSTER_CONTAINER_CONTEXT" not in {variable["name"] for variable in container["env"]}
    labels = {name: pod["metadata"]["labels"] for name, pod in pods.items()}
    labels["run"] = cluster.job_of_a_run()["spec"]["template"]["metadata"]["labels"]
    assert connections(labels) == {("server", 4000): {"webserver", "daemon", "run"}, ("webserver", 3000): {"server"}}
    first, *_ = pods["daemon"]["spec"]["initContainers"]
    assert first["name"] == "pool-limit"
    assert {"dagster-instance"} <= {volume["name"] for volume in pods["daemon"]["spec"]["volumes"]}
