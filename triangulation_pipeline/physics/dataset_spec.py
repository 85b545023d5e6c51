"""What identifies a simulated dataset: network, scenario, seed, number of samples and generator version."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from pydantic import ValidationError

from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.propagation import path_loss_function
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.validation import one_sentence

# Raised with every change of the rows of equal specs: part of a dataset's identity, and of assets' code versions.
GENERATOR_VERSION = 1
CHUNK_SIZE = 8192
_DATASET_NAMESPACE = uuid.UUID("6c1ad1f0-5f5b-5d0e-9a52-5b6f6f0f9a3e")


@dataclass(frozen=True)
class DatasetSpec:
    """What identifies a simulated dataset. Raises ValueError if the parts contradict each other."""

    network: ReceiverNetwork
    scenario: Scenario
    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 to 2^63 - 1, got {self.seed}")
        path_loss_function(self.scenario)
        if self.scenario.min_detections > len(self.network.sites):
            raise ValueError(
                f"min_detections ({self.scenario.min_detections}) must not exceed the network's "
                f"{len(self.network.sites)} sites"
            )

    def _identity(self) -> dict[str, object]:
        return {
            "generator_version": GENERATOR_VERSION,
            "network_digest": self.network.digest,
            # Without parameters that are left out: a parameter that is added later leaves older identities as they are.
            "scenario": self.scenario.model_dump(mode="json", exclude_none=True),
            "seed": self.seed,
        }

    @cached_property
    def sample_namespace(self) -> uuid.UUID:
        """Namespace of the sample ids: the identity without the count, so a longer dataset keeps them."""
        return uuid.uuid5(_DATASET_NAMESPACE, json.dumps(self._identity(), sort_keys=True))

    @cached_property
    def dataset_id(self) -> str:
        """The identity as a UUID."""
        return str(uuid.uuid5(self.sample_namespace, f"{self.num_samples} samples"))

    def description(self) -> dict[str, object]:
        """The identity in full, as stored with the dataset."""
        return self._identity() | {"num_samples": self.num_samples, "network": self.network.model_dump(mode="json")}

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> Self:
        """The spec of a stored description. Its ids are those that this version's generator gives; a dataset of another
        generator keeps its own. Raises ValueError if the description is not one."""
        try:
            return cls(
                ReceiverNetwork.model_validate(description["network"]),
                Scenario.model_validate(description["scenario"]),
                int(description["num_samples"]),
                int(description["seed"]),
            )
        except ValidationError as error:
            raise ValueError(one_sentence(error)) from None
        except KeyError as error:
            raise ValueError(f"it has no {error.args[0]}") from None

    @property
    def num_chunks(self) -> int:
        """How many chunks make the dataset."""
        return -(-self.num_samples // CHUNK_SIZE)
