"""LongformerSelfAttention: project, attend locally, attend globally, merge (paper §3.1).

Documents of a batch are packed: their real tokens stand one after another in one (N, C) matrix, so that no layer ever
computes padding. In a graph and on a GPU they come padded instead, see :class:`Padded`. Letters: N packed tokens, L
tokens of one document, H heads, D head dimension, C = H·D hidden size, G global tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.kernels import choose, dispatch, global_attention, sliding_window_attention
from longformer.models.linear import Linear, is_plain

# Documents of fewer tokens are projected to global keys and values, by bytes a number: that is more arithmetic than to
# carry the queries to the hidden states, but few large products instead of many small ones. Measured on a Xeon.
SHORT = {2: 512, 4: 128, 8: 128}


class Document(NamedTuple):
    """One document of a batch, as it stands in the packed rows.

    length: L, rows from its first to its last token that is no padding.
    key_mask: (L,) bool, False at padding between them; None if there is none, as in all ordinary batches.
    global_index: (G,) positions of its global tokens, 0 ≤ position < L; None if it has none.
    """

    length: int
    key_mask: Tensor | None
    global_index: Tensor | None


class Padded(NamedTuple):
    """A batch whose padding is computed too, in one call a layer for all its documents.

    So it is in a compiled or exported graph, which takes no decision on its data, and on a GPU, which would wait for
    the host to make a call for each document.

    key_mask: (B, S) bool, False at padding; None if there is none.
    global_mask: (B, S) bool, True at global tokens; None if there are none.
    global_index: (B, S) the same as positions, -1 behind the last; (B, G) if counted, of G in the example with most.
    counted: whether it was read back from the data how many there are, which a graph does not.
    """

    key_mask: Tensor | None
    global_mask: Tensor | None
    global_index: Tensor | None
    counted: bool

    @classmethod
    def of(cls, key_mask: Tensor | None, global_mask: Tensor | None, *, counted: bool = False) -> Padded:
        index = None if global_mask is None else dispatch.global_index(global_mask, counted=counted)
        return cls(key_mask, None if index is None else global_mask, index, counted)


class LongformerSelfAttention(nn.Module):
    """Sliding-window and global attention of one layer, up to the output projection.

    Args:
        config: the model's configuration.
        layer: number of the layer, which decides its window and its heads' dilation.
        impl: implementation of the kernels, see :func:`longformer.kernels.choose`.
    """

    def __init__(self, config: LongformerConfig, layer: int, *, impl: str = "auto") -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.window = config.window(layer)
        self.dilation = config.dilation(layer)
        self.dropout_p = config.attention_probs_dropout_prob
        self.impl = impl
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)
        self.query_global = Linear(config.hidden_size, config.hidden_size)
        self.key_global = Linear(config.hidden_size, config.hidden_size)
        self.value_global = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, documents: list[Document] | Padded) -> Tensor:
        """(N, C) to (N, C), or (B, S, C) to (B, S, C) of a padded batch.

        Rows behind the last document are padding, and their result is 0.
        """
        if isinstance(documents, Padded):
            return self._attend_padded(hidden, documents)
        lengths = [document.length for document in documents]
        lengths.append(hidden.shape[0] - sum(lengths))
        query, key, value = (self._heads(layer(hidden)).split(lengths) for layer in (self.query, self.key, self.value))
        rows = hidden.split(lengths)
        global_rows = self._short_global_rows(rows, documents)
        results = []
        for i, document in enumerate(documents):
            if document.length:
                out = self._attend(document, query[i], key[i], value[i])
                if document.global_index is not None:
                    # A global row was computed locally like any other, and is now replaced.
                    new = global_rows[i] if i in global_rows else self._global_rows(rows[i], document)
                    replace = out.index_copy if torch.is_grad_enabled() else out.index_copy_
                    out = replace(0, document.global_index, new.to(out.dtype))
                results.append(out)
        if lengths[-1]:
            results.append(query[-1].new_zeros(lengths[-1], hidden.shape[1]))
        return torch.cat(results) if len(results) > 1 else results[0]

    def _attend_padded(self, hidden: Tensor, batch: Padded) -> Tensor:
        """(B, S, C) to (B, S, C): local and global rows of every token, of which each keeps its own kind."""

        def heads(layer: nn.Module) -> Tensor:
            return self._heads(layer(hidden)).transpose(1, 2)

        query, key, value = heads(self.query), heads(self.key), heads(self.value)
        dropout_p = self.dropout_p if self.training else 0.0
        common: dict[str, Any] = {"key_mask": batch.key_mask, "dropout_p": dropout_p, "impl": self.impl}
        if self.impl in dispatch.TRACED:
            common["scale"] = 1 / math.sqrt(self.head_dim)
            pattern: dict[str, Any] = {"window": self.window, "dilation": self.dilation, "index": batch.global_index}
            out = dispatch.attention(query, key, value, **pattern, **common)
        else:
            pattern = {"dilation": self.dilation, "global_mask": batch.global_mask}
            out = sliding_window_attention(query, key, value, self.window, **pattern, **common)
        if batch.global_mask is not None:
            if batch.counted:
                rows = self._padded_global_rows(hidden, batch)
            else:
                projected = heads(self.query_global), heads(self.key_global), heads(self.value_global)
                if self.impl in dispatch.TRACED:
                    rows = dispatch.attention(*projected, index=batch.global_index, **common)
                else:
                    rows = global_attention(*projected, **common)
            out = torch.where(batch.global_mask[:, None, :, None], rows, out)
        return out.transpose(1, 2).flatten(2)

    def _padded_global_rows(self, hidden: Tensor, batch: Padded) -> Tensor:
        """(B, S, C) to (B, H, S, D): at each global token its row, and anything elsewhere. G rows are computed."""
        assert batch.global_mask is not None and batch.global_index is not None
        places = batch.global_index.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[2])
        query = self._heads(self.query_global(hidden.gather(1, places)))
        key, value = (self._heads(layer(hidden)) for layer in (self.key_global, self.value_global))
        rows = global_attention(
            *(x.transpose(1, 2) for x in (query, key, value)),
            key_mask=batch.key_mask,
            dropout_p=self.dropout_p if self.training else 0.0,
            impl=self.impl,
        )
        number = (batch.global_mask.cumsum(1) - 1).clamp(min=0)  # of the row that a token has
        return rows.gather(2, number[:, None, :, None].expand(-1, self.num_heads, -1, self.head_dim))

    def _heads(self, x: Tensor) -> Tensor:
        """(..., C) to (..., H, D)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def _attend(self, document: Document, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Sliding-window attention within a document: three (L, H, D) to (L, C)."""
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))  # (1, H, L, D)
        index, dropout_p = document.global_index, self.dropout_p if self.training else 0.0
        common: dict[str, Any] = {"key_mask": _row(document.key_mask), "dilation": self.dilation}
        common["dropout_p"] = dropout_p
        if index is not None and choose(query, impl=self.impl, dropout_p=dropout_p).impl == "triton":
            # A mask would have the device asked in every layer how many tokens are global, which is known here.
            common |= {"index": index[None], "scale": 1 / math.sqrt(self.head_dim)}
            out = dispatch.attention(query, key, value, impl="triton", window=self.window, **common)
        else:
            if index is not None:
                common["global_mask"] = torch.zeros(1, document.length, dtype=torch.bool, device=query.device)
                common["global_mask"][0, index] = True
            out = sliding_window_attention(query, key, value, self.window, impl=self.impl, **common)
        return out[0].transpose(0, 1).flatten(1)

    def _attend_globally(self, document: Document, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of a document's global rows (G, H, D) to all of its (L, H, D) keys and values: (G, C)."""
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        out = global_attention(
            query,
            key,
            value,
            key_mask=_row(document.key_mask),
            dropout_p=self.dropout_p if self.training else 0.0,
            impl=self.impl,
        )
        return out[0].transpose(0, 1).flatten(1)

    def _short_global_rows(self, rows: Sequence[Tensor], documents: list[Document]) -> dict[int, Tensor]:
        """Global rows (G, C) of the short documents, by number, from each one's (L, C): projected all at once."""
        most = SHORT[self.query_global.weight.element_size()]
        short = {i: x.global_index for i, x in enumerate(documents) if x.global_index is not None and x.length < most}
        if not short:
            return {}
        lengths = [documents[i].length for i in short]
        firsts = [0, *itertools.accumulate(lengths)]
        hidden = torch.cat([rows[i] for i in short]) if len(short) > 1 else rows[next(iter(short))]
        places = torch.cat([first + index for first, index in zip(firsts, short.values(), strict=False)])
        queries = self._heads(self.query_global(hidden[places])).split([len(index) for index in short.values()])
        keys, values = (self._heads(layer(hidden)).split(lengths) for layer in (self.key_global, self.value_global))
        return {
            i: self._attend_globally(documents[i], query, key, value)
            for i, query, key, value in zip(short, queries, keys, values, strict=True)
        }

    def _global_rows(self, hidden: Tensor, document: Document) -> Tensor:
        """Attention of a document's global rows to all rows of ``hidden`` (L, C), by the global projections: (G, C)."""
        index, dropout_p = document.global_index, self.dropout_p if self.training else 0.0
        assert index is not None
        query = self._heads(self.query_global(hidden[index]))  # (G, H, D)
        # Carrying the queries to the hidden states costs G·H·C a row, projecting the hidden states C·C. But the
        # GPU's kernels take no heads so wide.
        carried = len(index) * self.num_heads < hidden.shape[1] + len(index)
        carried = carried and is_plain(self.key_global, self.value_global)
        if carried and choose(query[None], impl=self.impl, dropout_p=dropout_p).impl != "triton":
            return self._global_rows_unprojected(hidden, query, _row(document.key_mask))
        return self._attend_globally(
            document, query, self._heads(self.key_global(hidden)), self._heads(self.value_global(hidden))
        )

    def _global_rows_unprojected(self, hidden: Tensor, query: Tensor, key_mask: Tensor | None) -> Tensor:
        """The same without projecting every row: q · (K x + b) = (Kᵀ q) · x + q · b, and Σ p (V x) = V (Σ p x).

        So one attention with G·H queries of size C has the hidden states themselves as keys and as values. To carry
        the biases along, exactly even where dropout keeps Σ p from being 1, a column of ones is put to the hidden
        states; without dropout q · b shifts a whole row of scores, which changes no probability, and Σ p is 1.
        """
        dropout_p = self.dropout_p if self.training else 0.0
        heads = (self.num_heads, self.head_dim)
        query = torch.bmm(query.transpose(0, 1), self.key_global.weight.unflatten(0, heads))  # (H, G, C)
        hidden = hidden.to(query.dtype)
        if dropout_p:
            hidden = F.pad(hidden, (0, 1), value=1.0)
            query = F.pad(query, (0, 1))
        sums = global_attention(
            query.flatten(0, 1)[None, None],
            hidden[None, None],
            hidden[None, None],
            key_mask=key_mask,
            scale=1 / math.sqrt(self.head_dim),
            dropout_p=dropout_p,
            impl=self.impl,
        )[0, 0].unflatten(0, query.shape[:2])  # (H, G, C)
        total: Tensor | float = 1.0
        if dropout_p:
            sums, total = sums[..., :-1], sums[..., -1:]
        value = self.value_global
        out = torch.bmm(sums, value.weight.unflatten(0, heads).transpose(1, 2))  # (H, G, D)
        out = (out + total * value.bias.unflatten(0, heads)[:, None]).transpose(0, 1).flatten(1)
        # The key's bias changes no probability. Its gradient is 0, and not missing, which optimisers treat otherwise.
        return out + 0 * self.key_global.bias if torch.is_grad_enabled() else out


def _row(mask: Tensor | None) -> Tensor | None:
    """(L,) to (1, L)."""
    return None if mask is None else mask[None]
