"""The stack against recorded numbers of the reference implementation (arXiv 2203.07852).

The reference attends to the empty window at a document's start; ours hides it. To compare, its
missing window is given to our model as zero keys that count as seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core import View
from jaxlab.models import TransformerLM, TransformerLMConfig
from jaxlab.objectives import next_token

RECURRENT = {"recurrent_layers": (1,)}
VARIANTS = {
    "slide": {},
    "fixed_skip": RECURRENT,
    "fixed_skip, compiled": RECURRENT | {"backend": "compiled"},
    "fixed_single": RECURRENT | {"update": "single"},
    "fixed_dual": RECURRENT | {"update": "dual"},
    "lstm_skip": RECURRENT | {"gate": "lstm"},
    "lstm_single": RECURRENT | {"gate": "lstm", "update": "single"},
    "lstm_dual": RECURRENT | {"gate": "lstm", "update": "dual"},
    "gru_skip": RECURRENT | {"gate": "gru"},
    "feedback_fixed_skip": RECURRENT | {"state_readers": (0, 2)},
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def golden(request, shared):
    variant, *compiled = request.param.split(", ")
    if compiled:
        request.getfixturevalue("compiler")
    with np.load(shared / "golden" / "golden_block_recurrent.npz") as file:
        numbers = {
            name.removeprefix(variant + "/"): file[name]
            for name in file.files
            if name.startswith(variant + "/") or "/" not in name
        }
    config = TransformerLMConfig(
        vocab_size=40,
        width=32,
        depth=3,
        num_heads=2,
        head_dim=16,
        mlp_dim=64,
        window=16,
        num_states=8,
        dtype="float32",
        **VARIANTS[request.param],
    )
    view = View.of(TransformerLM(config, rngs=nnx.Rngs(0)))
    params = {path: ours(path, view.params[path].shape, numbers, "params") for path in view.params}
    return view, params, numbers


def ours(path, shape, numbers, section):
    """The reference's array for one of our parameters, in our shape."""
    if path == "embedding/embedding":
        return numbers[f"{section}/embed/embedding"]
    if path == "final_norm/scale":
        return numbers[f"{section}/final_layernorm/scale"]
    _, layer, *rest = path.split("/")
    name = "/".join(rest)
    prefix = f"{section}/transformer{layer}"
    if name == "attention/cell/initial":
        return numbers[f"{prefix}/recurrent_initial_state"]
    if name.endswith("position/bias"):
        return numbers[f"{prefix}/relative_positions/rel_embedding"]
    side = "recurrent_tbase" if "attention/cell" in name else "tbase"
    name = name.replace("attention/cell/", "").replace("attention/attention/", "")
    theirs = {
        "attention_norm/scale": "_kvq/pre_attn_layernorm/scale",
        "norm/scale": "_kvq/pre_attn_layernorm/scale",
        "query/kernel": "_kvq/queries_layer/kernel",
        "key/kernel": "_kvq/keys_layer/kernel",
        "value/kernel": "_kvq/values_layer/kernel",
        "token_query/kernel": "_kvq/queries2_layer/kernel",
        "attention/state_query/kernel": "_kvq/queries2_layer/kernel",
        "scale": "_kvq/attention_scale",
        "token_scale": "attention_scale2",
        "attention/state_scale": "attention_scale2",
        "ids": "_kvq/position_embeddings",
        "output/kernel": "post_attn_mlp/output_layer/kernel",
        "mlp_norm/scale": "pre_ffn_layernorm/scale",
        "mlp/up/kernel": "ffn/hidden0/kernel",
        "mlp/down/kernel": "ffn/output_layer/kernel",
    }
    if name.startswith("attention/update/") or name.startswith("update/"):
        return of_update(name.split("update/")[1], prefix + "/recurrent_tbase", numbers)(shape)
    name = name if name in theirs else name.removeprefix("attention/")
    return numbers[f"{prefix}/{side}/{theirs[name]}"].reshape(shape)


def of_update(name, prefix, numbers):
    """Their array for a parameter of the state's update; after attention, or in an MLP."""
    has_mlp = f"{prefix}/ffn/hidden0/kernel" in numbers
    room = "post_attn_mlp" if name.startswith(("attention/", "output/")) or not has_mlp else "ffn"
    name = name.removeprefix("attention/")
    theirs = {
        "output/kernel": "output_layer/kernel",
        "down/kernel": "output_layer/kernel",
        "up/kernel": "hidden0/kernel",
        "gate/linear/kernel": "gate_layer/kernel",
        "gate/forget/kernel": "forget_gate/kernel",
        "gate/forget_bias": "forget_gate/bias",
        "gate/take/kernel": "input_gate/kernel",
        "gate/take_bias": "input_gate/bias",
    }
    if name == "norm/scale":
        return numbers[f"{prefix}/pre_ffn_layernorm/scale"].reshape
    if name == "gate/bias":
        full = f"{prefix}/{room}/gate_layer/bias"
        return numbers[full if full in numbers else f"{prefix}/{room}/gate_bias"].reshape
    return numbers[f"{prefix}/{room}/{theirs[name]}"].reshape


def batch_of(numbers, segment):
    """One segment; the reference never predicts the first token of the next."""
    tokens = jnp.asarray(numbers["tokens"][segment])
    mask = jnp.ones(tokens.shape, bool).at[:, -1].set(False)
    return {
        "inputs": tokens,
        "targets": jnp.roll(tokens, -1, axis=1),
        "mask": mask,
        "start": jnp.zeros(tokens.shape, bool),
    }


def restart(carry, rows, params):
    """Starts documents as the reference does: zero keys that count, the initial state."""
    rows = np.asarray(rows)
    fresh = jax.tree.map(lambda x: jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), 0, x), carry)
    for layer, block in fresh["blocks"].items():
        if "state" in block:
            initial = params[f"blocks/{layer}/attention/cell/initial"]
            block["state"] = jnp.where(rows[:, None, None], initial, block["state"])
    fresh["length"] = jnp.full_like(carry["length"], 1000)
    return fresh


def run(view, params, numbers):
    carry = view.model(params).init_carry(2)
    outputs = []
    for segment in range(2):
        carry = restart(carry, numbers["start"][segment], params)
        batch = batch_of(numbers, segment)
        loss = next_token(view.bind(params), batch, carry)
        logits, _ = view.apply(params, batch["inputs"], carry, batch["start"])
        outputs.append((logits, loss.value, loss.carry, carry))
        carry = loss.carry
    return outputs


def test_logits_losses_and_states_match_over_two_segments(golden):
    view, params, numbers = golden
    for segment, (logits, loss, carry, _) in enumerate(run(view, params, numbers)):
        np.testing.assert_allclose(logits, numbers["logits"][segment], atol=1e-4)
        np.testing.assert_allclose(loss, numbers["loss"][segment], atol=1e-5)
        for layer, block in carry["blocks"].items():
            theirs = f"state{segment + 1}/transformer{layer}"
            for name, array in block.items():
                name = {"state": "recurrent_state"}.get(name, f"previous_{name}")
                np.testing.assert_allclose(array, numbers[f"{theirs}/{name}_train"], atol=1e-4)


@pytest.mark.parametrize(
    "golden", ["slide", "fixed_skip", "fixed_skip, compiled", "lstm_dual"], indirect=True
)
def test_gradients_of_the_second_segment_match(golden):
    view, params, numbers = golden
    carry = run(view, params, numbers)[1][3]
    batch = batch_of(numbers, 1)

    def loss(params):
        restarted = restart(carry, [False, numbers["start"][1][1]], params)
        return next_token(view.bind(params), batch, restarted).value

    grads = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    for path, grad in grads.items():
        theirs = ours(path, grad.shape, numbers, "grad2")
        np.testing.assert_allclose(grad, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=path)
