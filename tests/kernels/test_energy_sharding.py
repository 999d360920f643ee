"""The energy distance of sets that are cut over eight devices: nothing is sent, and the numbers are those of one."""

import re

import jax
import numpy as np
import pytest
from exact_energy import expression

from perturbdiff_jax import sharding
from perturbdiff_jax.kernels.energy_distance import energy_distance

B, S, R, G = 16, 12, 9, 200
SENT = r"all-gather|all-to-all|all-reduce|collective-permute|collective-broadcast|reduce-scatter"


def of_sets(x, y, weights, pull):
    """Values [B], and the derivatives that training asks for."""
    value, back = jax.vjp(lambda x, y: energy_distance(x, y, weights_y=weights), x, y)
    return value, *back(pull)


@pytest.mark.parametrize("cut", [{}, {"fsdp": 2}], ids=["data 8", "data 4 x fsdp 2"])
def test_every_device_does_its_own_sets(cut):
    draw = np.random.default_rng(0)
    given = (
        expression(draw, B * S, G).reshape(B, S, G),
        expression(draw, B * R, G, 0.2).reshape(B, R, G),
        draw.uniform(0.5, 2.0, (B, R)).astype(np.float32),
        draw.normal(size=B).astype(np.float32),
    )
    place = sharding.batch_sharding(sharding.make_mesh(sharding.MeshOptions(**cut)))
    compiled = jax.jit(of_sets, in_shardings=place, out_shardings=place).lower(*given).compile()
    assert not re.search(SENT, compiled.as_text())
    found = compiled(*(jax.device_put(array, place) for array in given))
    for got, want in zip(found, jax.jit(of_sets)(*given), strict=True):
        assert {shard.data.shape for shard in got.addressable_shards} == {(B // 8, *want.shape[1:])}
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
