"""The denoiser: an MM-DiT over sets of cells (method 4). One pass maps noisy cells to an estimate of x0.

Two streams, perturbed `x` and control `u`, share one self-attention: cell i of both is one token of width 2D. Time
and covariates enter as modulation only. The module knows no diffusion: how `xt` was made and what is done with the
estimate is diffusion/'s business. The released network's unused parts (control head) do not exist.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturbdiff_jax import sharding
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models import trunk
from perturbdiff_jax.models.arithmetic import wide
from perturbdiff_jax.models.block import Block, Head
from perturbdiff_jax.models.covariates import CovariateEncoder
from perturbdiff_jax.models.layers import CellEmbedder, Linear, Modulation, TimeEmbedder
from perturbdiff_jax.sharding import constrain

ANCHORS = ("none", "control", "scaled_control")
USES = ("yes", "no", "auto")
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Shape of the network; the defaults are the released full-size model (104 M parameters at 2,000 genes)."""

    width: int = 512
    depth: int = 8
    heads: int = 8
    mlp_ratio: int = 4
    covariate_width: int = 128
    # Covariates besides the perturbation: "yes", "no", or "auto" = yes unless the hold-out has a cell type (batch)
    # without any perturbed training cell. Then control cells alone tell the context, and that carries over.
    use_cell_type: str = "yes"
    use_batch: str = "yes"
    # "no" gives every cell the embedding of "none": marginal pretraining, where perturbations are not looked at.
    use_perturbation: str = "yes"
    norm_of_block_input: bool = True  # released order; False = the textbook order (norm after the residual)
    # What the output is added to before the ReLU. Released: nothing ("none"). "control": the control cell of
    # the same token, so that the network predicts a change; "scaled_control": the same with a factor per gene
    # that depends on time and covariates (a zero stays a zero).
    anchor: str = "none"
    # What the backward pass computes again instead of keeping it: "none", "full" = everything inside a block, "dots" =
    # all but the outputs of matrix products.
    remat: str = "none"
    # Blocks in a loop ("yes"), or written out one after the other ("no": compiles longer, quicker on CPUs). "auto" =
    # yes, but no on CPUs. Parameters are the same.
    scan: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses values that make no network."""
        if 2 * self.width % self.heads:
            raise RequestError(
                f"model.heads={self.heads}: must divide twice model.width={self.width} (both streams share heads)."
            )
        if self.anchor not in ANCHORS:
            raise RequestError(f"model.anchor={self.anchor!r}: allowed are {', '.join(ANCHORS)}.")
        for name in ("use_cell_type", "use_batch", "scan"):
            if getattr(self, name) not in USES:
                raise RequestError(f"model.{name}={getattr(self, name)!r}: allowed are {', '.join(USES)}.")
        if self.use_perturbation not in USES[:2]:
            raise RequestError(f"model.use_perturbation={self.use_perturbation!r}: allowed are yes, no.")
        if self.remat not in REMAT:
            raise RequestError(f"model.remat={self.remat!r}: allowed are {', '.join(REMAT)}.")
        if self.dtype not in DTYPES:
            raise RequestError(f"model.dtype={self.dtype!r}: allowed are {', '.join(DTYPES)}.")
        if min(self.width, self.depth, self.heads, self.mlp_ratio, self.covariate_width) < 1:
            raise RequestError(
                "model: width, depth, heads, mlp_ratio and covariate_width must be at least 1."
            )

    @property
    def loops(self) -> bool:
        """Whether blocks are a loop."""
        return self.scan == "yes" or (self.scan == "auto" and jax.default_backend() != "cpu")


class Denoiser(nn.Module):
    """x0 estimate of a set of noisy cells given time, control cells and covariates.

    Attributes:
      options: shape of the network.
      genes, perturbations, cell_types, batches: sizes of the vocabularies.
      sources: sources of data with an input layer each; 0 = one shared layer.
      perturbation_table, cell_type_table, perturbation_rows, cell_type_rows, dose_codes: see models/covariates.py.
      covariate_genes: output width of the covariate encoder; 0 = `genes`. Weights finetuned to another gene set keep
        the width they were pretrained with.
    """

    options: ModelOptions
    genes: int
    perturbations: int
    cell_types: int
    batches: int
    sources: int = 0
    perturbation_table: tuple[int, int] | None = None
    cell_type_table: tuple[int, int] | None = None
    perturbation_rows: tuple[tuple[int, ...], ...] = ()
    cell_type_rows: tuple[tuple[int, ...], ...] = ()
    dose_codes: tuple[int, ...] = ()
    covariate_genes: int = 0

    @nn.compact
    def __call__(
        self,
        xt: jax.Array,
        t: jax.Array,
        control: jax.Array,
        perturbation: jax.Array,
        cell_type: jax.Array,
        batch: jax.Array,
        drop: jax.Array | bool = False,
        self_condition: jax.Array | None = None,
        source: jax.Array | None = None,
        fed_back: jax.Array | bool = True,
    ) -> jax.Array:
        """One pass of the network.

        Args:
          xt: [B, S, G] noisy perturbed cells.
          t: [B] int timestep of each set.
          control: [B, S, G] clean control cells (zeros when they are dropped).
          perturbation, cell_type, batch: int codes [B] or, for sets that mix batches, [B, S].
          drop: bool, [B] or [k * B] bool; True replaces the covariate embedding by the learned null vector
            (unconditional). k > 1 are branches over the same cells (guidance), one after the other, which share all
            that comes before the first block.
          self_condition: [B, S, G] previous x0 estimate, None for zeros.
          source: [B] int code of the source of each set; None is source 0.
          fed_back: bool scalar; False says that `self_condition` is all zeros, and one device need not multiply it.

        Returns:
          [B, S, G] float32 estimate of x0, not negative; [k * B, S, G] of k branches.
        """
        opts = self.options
        dtype = DTYPES[opts.dtype]
        width = opts.width
        gene_vector = self.param("gene_vector", nn.initializers.normal(1.0), (width,), jnp.float32)
        source = jnp.zeros_like(t) if source is None else source
        # Of many sets on many devices some were always fed back, and sums over devices are better not in a branch.
        fed_back = fed_back if sharding.pieces("sets") == 1 else True
        x = CellEmbedder(width, self.sources, dtype, name="embed_perturbed")(
            xt, self_condition, source, fed_back
        )
        u = CellEmbedder(width, self.sources, dtype, name="embed_control")(control, None, source)
        x, u = (
            constrain((wide(tokens) + gene_vector[None, None]).astype(dtype), "sets", "whole", "whole")
            for tokens in (x, u)
        )

        # One code for a set of cells: modulation is computed once per set.
        perturbation, cell_type, batch = (
            code[:, None] if code.ndim == 1 else code for code in (perturbation, cell_type, batch)
        )
        covariates = CovariateEncoder(
            perturbations=self.perturbations,
            cell_types=self.cell_types if opts.use_cell_type != "no" else 0,
            batches=self.batches if opts.use_batch != "no" else 0,
            genes=self.covariate_genes or self.genes,
            width=opts.covariate_width,
            ignore_perturbation=opts.use_perturbation == "no",
            perturbation_table=self.perturbation_table,
            cell_type_table=self.cell_type_table,
            perturbation_rows=self.perturbation_rows,
            cell_type_rows=self.cell_type_rows,
            dose_codes=self.dose_codes,
            dtype=dtype,
            name="covariates",
        )(perturbation, cell_type, batch)
        condition = Linear(width, dtype=dtype, name="condition")(nn.silu(covariates))
        null = self.param("null_condition", nn.initializers.normal(1.0), (width,), jnp.float32)
        drop = jnp.asarray(drop)
        branches = max(1, drop.size // t.size)
        dropped = jnp.broadcast_to(drop, (branches * t.size,))[:, None, None]
        condition = jnp.where(dropped, null[None, None], _branched(wide(condition), branches))
        time = wide(TimeEmbedder(width, dtype=dtype, name="time")(t))[:, None]
        c = (_branched(time, branches) + condition).astype(dtype)

        arguments = (width, opts.heads, opts.mlp_ratio, opts.norm_of_block_input, dtype)
        policy = REMAT[opts.remat]
        # Inside a loop nothing can be merged with what is computed again; written out, it has to be prevented.
        block = nn.remat(Block, prevent_cse=not opts.loops, policy=policy) if policy else Block
        streams = (_branched(x, branches), _branched(u, branches))
        if opts.depth > 1 and (opts.loops or self.is_initializing()):
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=opts.depth - 1,
            )
            streams, _ = stack(*arguments, name=trunk.NAME)(streams, c)
        elif opts.depth > 1:
            for layer in trunk.layers(self.get_variable("params", trunk.NAME)):
                streams, _ = block(*arguments, parent=None).apply({"params": layer}, streams, c)
        (x, _), _ = block(*arguments, last=True, name="last_block")(streams, c)
        out = Head(width, self.genes, opts.anchor != "none", dtype, name="head")(x, c)
        if opts.anchor != "none":
            kept = _branched(control.astype(jnp.float32), branches)
            if opts.anchor == "scaled_control":
                (scale,) = Modulation(self.genes, 1, dtype=jnp.float32, name="anchor")(c.astype(jnp.float32))
                kept = (1.0 + scale) * kept
            out = out + kept
        return nn.relu(out)


def _branched(array: jax.Array, branches: int) -> jax.Array:
    """[B, ...] -> [branches * B, ...]."""
    return array if branches == 1 else jnp.concatenate([array] * branches)
