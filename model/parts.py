"""Protocols of the parts of HDMNet that can be replaced: matching module, decoder and loss.

`HDMNet(base, matching=..., decoder=...)` takes factories, usually the classes themselves;
`train.train(..., loss=...)` takes the loss. docs/extend.md shows each of them replaced.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from torch import Tensor, nn

from model.masked import MaskedPositions

if TYPE_CHECKING:
    from model.reference import HDMNetOutput

TokensT = TypeVar("TokensT", bound="Tokens")


class Tokens(Protocol):
    """What a matching module keeps of supports: a NamedTuple of tensors with two methods.

    The first dimensions of every tensor are (B, K): K supports in each of B episodes.
    """

    @classmethod
    def stack(cls: type[TokensT], samples: Sequence[TokensT], dim: int) -> TokensT:
        """Return all samples as one, put together along `dim`: 0 for episodes, 1 for supports.

        Tensors with one row per position differ in length; `model.masked.cat_rows` pads them.
        """
        ...

    def trimmed(self: TokensT, rows: int) -> TokensT:
        """Return the tokens of one support, (1, 1, ...), of whose rows only the first are needed.

        Args:
            rows: positions inside the mask, and one row of zeros. Later rows only pad. Where there is
                no row for each position, these are the tokens as they are.
        """
        ...


class Matching(Protocol):
    """The module that matches one stage of the query with the supports; each stage has its own.

    It is an `nn.Module` with these two methods.
    """

    def encode_support(self, support: Tensor, positions: MaskedPositions) -> Tokens:
        """Return the `Tokens` of supports, with (N,) instead of (B, K) as the first dimension.

        Args:
            support: maps of the stage (N, C, h, w).
            positions: those inside the N masks, on the grid of the stage.
        """
        ...

    def __call__(
        self, query: Tensor, support: Any, prior: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Match one stage.

        Args:
            query: maps (B, C, h, w).
            support: the module's `Tokens` of K supports for each query.
            prior: (B, 2, h, w).
            scale: factor of what is summed over the supports, other than 1 where the model was
                trained with another number of supports.

        Returns:
            The matched map (B, C, h, w) for the decoder, and the correlation map (B, h, w).
        """
        ...


class LossTerms(Protocol):
    """A NamedTuple of scalars: `total`, which is minimised, and others, which are only logged."""

    @property
    def total(self) -> Tensor: ...

    def _asdict(self) -> dict[str, Any]: ...


class Loss(Protocol):
    """The loss of one batch of episodes."""

    def __call__(
        self,
        output: "HDMNetOutput",
        query_mask: Tensor,
        base_mask: Tensor,
        distillation_weight: float,
        base_weight: float,
    ) -> LossTerms:
        """Return the terms of the loss.

        Args:
            output: of `HDMNet`.
            query_mask: int64 (B, H, W): 1 class, 0 other, 255 ignore.
            base_mask: int64 (B, H, W): 0 background, 1..N base classes, 255 ignore.
            distillation_weight: the setting `aux_weight1`.
            base_weight: the setting `aux_weight2`.
        """
        ...


# Takes the number of channels C.
MatchingFactory: TypeAlias = Callable[[int], Matching]
# Takes the numbers of channels C and of stages. The module that it returns maps a list of matched
# maps (B, C, h_i, w_i), finest first, to the logits (B, 2, h_0, w_0) of the meta learner.
DecoderFactory: TypeAlias = Callable[[int, int], nn.Module]
