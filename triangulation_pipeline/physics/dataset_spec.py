"""What identifies a simulated dataset: network or random layouts, scenario, seed, number of samples and generator."""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.layout import (
    DRAWN_PARAMETERS,
    LAYOUTS_VERSION,
    MOST_RANDOM_SITES,
    Layout,
    Layouts,
    random_layout,
)
from triangulation_pipeline.physics.propagation import path_loss_function
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.validation import one_sentence

# Raised with every change of the rows of equal specs: part of a dataset's identity, and of assets' code versions.
GENERATOR_VERSION = 2
CHUNK_SIZE = 8192
# Divides the size of a chunk.
ROWS_PER_LAYOUT = 512
RANDOM_LAYOUTS_DIGEST = hashlib.sha256(f"random layouts {LAYOUTS_VERSION}".encode()).hexdigest()
_DATASET_NAMESPACE = uuid.UUID("6c1ad1f0-5f5b-5d0e-9a52-5b6f6f0f9a3e")


@dataclass(frozen=True)
class DatasetSpec:
    """What identifies a simulated dataset: one network, or as many random layouts as its rows need.

    Raises ValueError if the parts contradict each other.
    """

    network: ReceiverNetwork | None  # None: random layouts
    scenario: Scenario
    num_samples: int
    seed: int
    layouts: Layouts = Layouts.own

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 to 2^63 - 1, got {self.seed}")
        path_loss_function(self.scenario)
        if (self.network is None) != (self.layouts is Layouts.random):
            raise ValueError(
                "layouts: random takes no network, as its networks are drawn"
                if self.network is not None
                else "layouts: own needs a network"
            )
        if self.network is None:
            self._check_random()
        if self.scenario.min_detections > self.num_sites:
            whose = "the widest random network's" if self.network is None else "the network's"
            raise ValueError(
                f"min_detections ({self.scenario.min_detections}) must not exceed {whose} {self.num_sites} sites"
            )

    def _check_random(self) -> None:
        for name in DRAWN_PARAMETERS:
            value, default = getattr(self.scenario, name), Scenario.model_fields[name].default
            if value != default:
                raise ValueError(
                    f"layouts: random draws {name} for each layout, so it must be left at {default:g}, got {value:g}"
                )

    def _identity(self) -> dict[str, object]:
        return {
            "generator_version": GENERATOR_VERSION,
            "layouts": self.layouts.value,
            "network_digest": self.network_digest,
            # Without parameters that are left out: a parameter that is added later leaves older identities as they are.
            "scenario": self.scenario.model_dump(mode="json", exclude_none=True),
            "seed": self.seed,
        }

    @property
    def network_name(self) -> str:
        """Name of the network, for lists."""
        return "random layouts" if self.network is None else self.network.name

    @property
    def network_digest(self) -> str:
        """Digest of the network; of random layouts, that of the rule by which they are drawn."""
        return RANDOM_LAYOUTS_DIGEST if self.network is None else self.network.digest

    @property
    def num_sites(self) -> int:
        """Receivers of a row. A random layout with fewer sites uses the first columns, and the others are empty."""
        return MOST_RANDOM_SITES if self.network is None else len(self.network.sites)

    def layout_number(self, sample_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the number of the layout in which each sample was measured: 0 for all if there is one network."""
        return sample_index // ROWS_PER_LAYOUT if self.network is None else np.zeros_like(sample_index)

    def layout(self, number: int) -> Layout:
        """The layout with that number.

        Parameters
        ----------
        number : int
            From ``layout_number``.

        Returns
        -------
        Layout
        """
        if self.network is None:
            return random_layout(self.scenario, self.seed, number)
        return Layout(self.network, self.scenario)

    def by_layout(self, samples: Samples) -> Iterator[tuple[Layout, NDArray[np.int64]]]:
        """The samples of each layout. ``samples.take(rows).of_sites(r)`` are those of a layout with r sites.

        Parameters
        ----------
        samples : Samples
            Any samples of this dataset.

        Yields
        ------
        layout : Layout
            In the order of the numbers.
        rows : ndarray of int64
            Indices into ``samples``, rising.
        """
        number = self.layout_number(samples.sample_index)
        order = np.argsort(number, kind="stable")
        numbers, starts = np.unique(number[order], return_index=True)
        for one, rows in zip(numbers, np.split(order, starts)[1:], strict=True):
            yield self.layout(int(one)), rows

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
        network = None if self.network is None else self.network.model_dump(mode="json")
        return self._identity() | {"num_samples": self.num_samples, "network": network}

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> Self:
        """The spec of a stored description. Its ids are those that this version's generator gives; a dataset of another
        generator keeps its own. Raises ValueError if the description is not one."""
        try:
            network = description["network"]
            if network is None and description["network_digest"] != RANDOM_LAYOUTS_DIGEST:
                raise ValueError("its random layouts are those of another version of this package")
            return cls(
                None if network is None else ReceiverNetwork.model_validate(network),
                Scenario.model_validate(description["scenario"]),
                int(description["num_samples"]),
                int(description["seed"]),
                # Datasets of the first generator say nothing of layouts.
                Layouts(description.get("layouts", Layouts.own)),
            )
        except ValidationError as error:
            raise ValueError(one_sentence(error)) from None
        except KeyError as error:
            raise ValueError(f"it has no {error.args[0]}") from None

    @property
    def num_chunks(self) -> int:
        """How many chunks make the dataset."""
        return -(-self.num_samples // CHUNK_SIZE)
