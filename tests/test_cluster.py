"""cluster.yaml against Ray's own schema and EC2's own API; the Kubernetes manifests against KubeRay's fields."""

import copy
import json
from pathlib import Path

import botocore.session
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
GROUPS = {name: node for name, node in CLUSTER["available_node_types"].items() if name != "head"}
# Keys that Ray's provider reads and removes before it calls EC2.
OF_RAY = {"SubnetIds"}


def test_ray_accepts_the_cluster():
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_ray_refuses_a_misspelt_key():
    wrong = copy.deepcopy(CLUSTER)
    wrong["available_node_types"]["train"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", list(CLUSTER["available_node_types"]))
def test_ec2_accepts_every_node(name):
    node = CLUSTER["available_node_types"][name]["node_config"]
    request = {key: value for key, value in node.items() if key not in OF_RAY} | {"MinCount": 1, "MaxCount": 1}
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    assert node["InstanceType"] and node["ImageId"] and node["MetadataOptions"]["HttpTokens"] == "required"


def test_groups_grow_from_nothing_within_the_whole():
    assert set(GROUPS) == {"curate", "caption", "train"}
    for name, node in GROUPS.items():
        assert 0 == node["min_workers"] < node["max_workers"]
        assert node["resources"][name] > 0, f"{name} has its own resource"
        assert node["labels"] == {"pool": name}
        assert node["idle_timeout_s"] <= 900
    assert CLUSTER["max_workers"] >= sum(node["max_workers"] for node in GROUPS.values())
    assert CLUSTER["available_node_types"]["head"]["resources"]["CPU"] == 0


def test_training_group_is_16_nodes_of_8_gpus_with_efa():
    train = GROUPS["train"]
    config = train["node_config"]
    assert (train["max_workers"], config["InstanceType"], train["resources"]["GPU"]) == (16, "p5.48xlarge", 8)
    assert config["Placement"]["GroupName"]
    cards = config["NetworkInterfaces"]
    assert [card["NetworkCardIndex"] for card in cards] == list(range(32))
    assert cards[0]["InterfaceType"] == "efa" and cards[0]["DeviceIndex"] == 0
    assert {card["InterfaceType"] for card in cards[1:]} == {"efa-only"}
    assert not {"SubnetId", "SubnetIds", "SecurityGroupIds"} & set(config), "Ray refuses these beside cards"


def test_spot_where_a_loss_costs_one_unit():
    assert all(GROUPS[n]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for n in ("curate", "caption"))
    assert "InstanceMarketOptions" not in GROUPS["train"]["node_config"]


def test_nothing_is_left_to_rays_defaults_and_nothing_is_open():
    assert CLUSTER["setup_commands"], "left out, Ray's defaults install a nightly build"
    head, worker = (" ".join(CLUSTER[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in head
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    prepared = prepare_config(copy.deepcopy(CLUSTER))
    assert "nightly" not in str(prepared) and "3.0.0.dev0" not in str(prepared)


# What KubeRay 1.6 calls the fields that we use (ray.io/v1).
RAY_CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs"}
WORKER_GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template"}
RAY_JOB = {
    "entrypoint", "runtimeEnvYAML", "submissionMode", "backoffLimit", "activeDeadlineSeconds",
    "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec", "clusterSelector",
}  # fmt: skip


def manifests() -> list[tuple[str, dict]]:
    files = sorted((ROOT / "deploy").glob("*.yaml"))
    return [(f"{path.name}:{doc['kind']}", doc) for path in files for doc in yaml.safe_load_all(path.read_text())]


@pytest.mark.parametrize(("name", "manifest"), manifests(), ids=[name for name, _ in manifests()])
def test_manifest_has_only_known_fields(name, manifest):
    assert manifest["apiVersion"] == "ray.io/v1" and manifest["metadata"]["name"]
    spec = manifest["spec"]
    if manifest["kind"] == "RayJob":
        assert set(spec) <= RAY_JOB
        assert spec["entrypoint"].startswith("python -m jobs.")
        yaml.safe_load(spec["runtimeEnvYAML"])
        spec = spec.get("rayClusterSpec")
    if spec is not None:
        check_cluster(spec)


def check_cluster(spec: dict) -> None:
    """Fields, groups and counts of a RayCluster's spec, with the same groups as cluster.yaml."""
    assert set(spec) <= RAY_CLUSTER and spec["rayVersion"] == ray.__version__
    assert spec["authOptions"]["mode"] == "token" and spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "dashboard-host": "0.0.0.0"}
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP
        own = GROUPS[group["groupName"]]
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] == own["max_workers"]
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert int(limits.get("nvidia.com/gpu", 0)) == own["resources"].get("GPU", 0)
        offered = json.loads(json.loads(group["rayStartParams"]["resources"]))  # the shell takes one pair of quotes
        assert offered == {group["groupName"]: own["resources"][group["groupName"]]}


def test_the_job_runs_on_the_cluster():
    found = dict(manifests())
    cluster, job = found["raycluster.yaml:RayCluster"], found["rayjob.yaml:RayJob"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert {group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]} == set(GROUPS)
