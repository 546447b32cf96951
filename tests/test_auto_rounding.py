"""`rounding="auto"`: the table, the settings of each backend, and what it does to whole calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import auto_rounding, compiled, conformance, registry
from unifiedloss.auto_rounding import Setting
from unifiedloss.errors import SpecValueError
from unifiedloss.evaluation import evaluate
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.readers.files import Files
from unifiedloss.serialization import from_json

if TYPE_CHECKING:
    from pathlib import Path

AUTO = ul.CrossEntropyLoss(from_logits=True, rounding="auto")
SMOOTHED = AUTO.replace(label_smoothing=0.25)
"""A loss that is exact for float32 predictions and native for float64 ones."""

Z = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
Y = np.array([0, 1, 2, 3, 4, 0])


def planned(
    spec: ul.Loss, setting: Setting, dtype: str = "float32", shape: Any = (6, 5), **more: Signature
) -> Plan:
    """The plan of a call with class indices, or with targets of the shape of the predictions."""
    dense = not isinstance(spec, ul.CrossEntropyLoss | ul.NegativeLogLikelihoodLoss)
    targets = Signature(shape, "float32") if dense else Signature(shape[:-1], "int64")
    given = [Signature(shape, dtype), targets, more.get("sample_weight"), None]
    return auto_rounding.planned(spec, setting, lambda known: resolve(known, *given))


NATIVE: dict[str, tuple[ul.Loss, Setting, dict[str, Any]]] = {
    "a device other than the CPU": (AUTO, Setting("torch", "accelerator"), {}),
    "a program that is saved": (AUTO, Setting("tensorflow", mode="export"), {}),
    "torch.func inside torch.compile": (AUTO, Setting("torch", mode="transform"), {}),
    "shapes that are unknown in a program of JAX": (
        AUTO,
        Setting("jax", mode="jit"),
        {"shape": (None, 5)},
    ),
    "labels or numbers in a program of JAX that no compiled loop takes whole": (
        AUTO.replace(reduction="none"),
        Setting("jax", mode="jit"),
        {},
    ),
    "a program that XLA compiles for TensorFlow": (
        AUTO,
        Setting("tensorflow", mode="xla"),
        {},
    ),
    "float64 predictions in this form": (
        SMOOTHED,
        Setting("numpy"),
        {"dtype": "float64"},
    ),
    "several probabilities of a position in this form": (
        ul.CrossEntropyLoss(epsilon=0.4, label_smoothing=0.1, rounding="auto"),
        Setting("numpy"),
        {},
    ),
    "two weights of an element in this form": (
        ul.MeanSquaredError(element_weights=(1.0, 2.0, 3.0, 4.0, 5.0), rounding="auto"),
        Setting("numpy"),
        {"sample_weight": Signature((6, 5), "float32")},
    ),
    "a rule that only the oracle computes": (
        ul.MeanSquaredError(
            element_weights=(1.0, 2.0, 3.0, 4.0, 5.0), average_last_axis=True, rounding="auto"
        ),
        Setting("numpy"),
        {},
    ),
}
"""For each row of the table, a call that it alone decides."""


def test_every_row_has_a_call_that_it_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its row the call is exact, so no row is idle."""
    assert list(NATIVE) == [row.what for row in auto_rounding.TABLE]
    for row in auto_rounding.TABLE:
        spec, setting, more = NATIVE[row.what]
        found = planned(spec, setting, **more)
        assert found.rounding == found.spec.rounding == "native"
        assert found.why == f"native: {row.what}; rounding='exact' {row.exact}"
        with monkeypatch.context() as patch:
            others = tuple(other for other in auto_rounding.TABLE if other is not row)
            patch.setattr(auto_rounding, "TABLE", others)
            assert planned(spec, setting, **more).rounding == "exact"


@pytest.mark.parametrize("mode", ["eager", "lazy", "compiled", "jit", "graph", "xla"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_usual_calls_are_exact_whatever_their_size(mode: str, dtype: str) -> None:
    """Neither the extents nor the level of the compiled loops change the choice."""
    for level in compiled.levels():
        with compiled.forced(level):
            for rows in (0, 1, 10**6):
                found = planned(AUTO, Setting("jax", mode=mode), dtype, (rows, 5))
                assert found.rounding == "exact"
                assert found.why == f"exact: {dtype} predictions on the CPU"


def test_forms_that_a_loop_computes_are_exact() -> None:
    """Several probabilities, log-probabilities, and weights that run along different axes."""
    kept = ul.CrossEntropyLoss(epsilon="keras", renormalize="before_clip", rounding="auto")
    smoothed = ul.CrossEntropyLoss(label_smoothing=0.1, rounding="auto")
    nll = ul.NegativeLogLikelihoodLoss(rounding="auto")
    two = ul.MeanSquaredError(element_weights=(1.0, 2.0, 3.0, 4.0, 5.0), rounding="auto")
    weight = {"sample_weight": Signature((6,), "float32")}
    for spec, more in ((kept, {}), (smoothed, {}), (nll, {}), (nll, weight), (two, weight)):
        for dtype in ("float32", "float16", "bfloat16"):
            assert planned(spec, Setting("torch"), dtype, **more).rounding == "exact"
        assert planned(spec, Setting("torch"), shape=(None, 5), **more).rounding == "exact"


@pytest.mark.parametrize(
    ("spec", "dtype", "rounding"),
    [
        (SMOOTHED, "float32", "exact"),
        (AUTO, "float64", "exact"),
        (ul.BinaryCrossEntropyLoss(from_logits=True, rounding="auto"), "bfloat16", "exact"),
        (ul.MeanSquaredError(rounding="auto"), "bfloat16", "native"),
        (ul.MeanSquaredError(rounding="auto"), "float64", "native"),
        (AUTO.replace(class_weights=[1, 2, 3, 4, 5]), "float32", "native"),
    ],
)
def test_programs_of_jax(spec: ul.Loss, dtype: str, rounding: str) -> None:
    """They are native where XLA takes no time, whether or not the loops are built."""
    for level in compiled.levels():
        with compiled.forced(level):
            assert planned(spec, Setting("jax", mode="jit"), dtype).rounding == rounding
            assert planned(spec, Setting("jax"), dtype).rounding == "exact"


@pytest.mark.framework("numpy")
def test_a_plan_says_what_it_chose_and_logs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    """A native choice is one INFO line for each spec and reason; an exact one is none."""
    adapter = registry.adapter("numpy")
    spec = SMOOTHED
    auto_rounding._tell.cache_clear()
    adapter._plans.clear()
    with caplog.at_level(logging.INFO, "unifiedloss"):
        for rows in (3, 4):
            found = adapter.plan(spec, Z[:rows].astype(np.float64), Y[:rows], None, None)
            assert found.rounding == "native"
            assert adapter.plan(spec, Z[:rows], Y[:rows], None, None).rounding == "exact"
    (line,) = caplog.messages
    assert line == f"rounding='auto' of {spec!r} is {found.why}"
    assert repr(found).endswith(f"{found.why})")
    known = adapter.plan(spec.rounded("native"), Z, Y, None, None)
    assert known.why == "native: the spec says so"


def test_a_written_spec_keeps_the_word() -> None:
    """The choice depends on the call, so the text of a spec holds "auto"."""
    assert AUTO.to_dict() == {
        "loss": "cross_entropy", "version": 3, "from_logits": True, "rounding": "auto",
    }  # fmt: skip
    assert from_json(AUTO.to_json()) == AUTO


@pytest.mark.framework("numpy")
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", "exact"), ("float64", "native")])
def test_calls_have_the_bits_of_the_chosen_rounding(dtype: str, rounding: Any) -> None:
    """Losses, gradients, totals, divisors and results are those of the spec that is chosen."""
    z, chosen = Z.astype(dtype), SMOOTHED.rounded(rounding)
    results = [
        [
            spec(z, Y),
            *spec.value_and_grad(z, Y),
            spec.totals(z, Y),
            spec.result(spec.totals(z[:3], Y[:3]) + spec.totals(z[3:], Y[3:])),
            spec.divisor_of(Y, dtype=dtype),
            spec(z[:2], Y[:2], divisor=spec.divisor_of(Y, dtype=dtype)),
            spec.value_and_grad(z[:2], Y[:2], divisor=6)[1],
        ]
        for spec in (SMOOTHED, chosen)
    ]
    for mine, theirs in zip(*results, strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.framework("numpy")
def test_totals_of_both_roundings_are_refused_by_name() -> None:
    """NumPy adds the vector of an exact sum and that of a native one, which has one entry."""
    summed = SMOOTHED.replace(reduction="sum")
    mixed = summed.totals(Z, Y) + summed.totals(Z.astype(np.float64), Y)
    with pytest.raises(SpecValueError, match="chose 'exact' for some pieces and 'native' for"):
        summed.result(mixed)


@pytest.mark.framework("numpy")
def test_files_are_evaluated_in_the_chosen_rounding(tmp_path: Path) -> None:
    """The dtype of the file decides for all blocks, and the result names the rounding."""
    np.save(tmp_path / "y.npy", Y)
    for dtype, rounding in (("float32", "exact"), ("float64", "native")):
        np.save(tmp_path / "z.npy", Z.astype(dtype))
        files = Files(tmp_path / "z.npy", {"targets": tmp_path / "y.npy"})
        assert evaluate(SMOOTHED, files, rows=2).spec.rounding == rounding


@pytest.mark.framework("torch")
def test_torch_is_exact_except_under_a_transform_in_a_compiler() -> None:
    """torch.func inside torch.compile refuses exact mode, so there the call is native."""
    import torch

    z, y = torch.tensor(Z), torch.tensor(Y)
    wanted = AUTO.rounded("exact")(z, y)
    compile_ = torch.compile(fullgraph=True, backend="aot_eager")
    assert torch.equal(AUTO(z, y), wanted)
    assert torch.equal(compile_(lambda z: AUTO(z, y))(z), wanted)
    slope = compile_(torch.func.grad(lambda x: AUTO(x, y)))(z)
    torch.testing.assert_close(slope, AUTO.value_and_grad(z, y)[1])
    program = torch.export.export(_Module(), (z, y)).module()
    torch.testing.assert_close(program(z, y), wanted)
    assert "unifiedloss" not in str(program.graph)


@pytest.mark.framework("torch")
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_chooses_as_an_eager_call(dynamic: bool) -> None:
    """A compiler that cannot trace the choice gets it as a constant, whatever the form."""
    import torch

    p, t = torch.tensor(Z).softmax(-1), torch.tensor(Z[::-1].copy()).softmax(-1)
    y, weight = torch.tensor(Y), torch.arange(6.0)
    squared = ul.MeanSquaredError(element_weights=(1, 2, 3, 4, 5), rounding="auto")
    calls: list[tuple[ul.Loss, tuple[Any, ...], dict[str, Any]]] = [
        (AUTO.replace(from_logits=False), (p, t), {}),
        (SMOOTHED, (p.double(), y), {}),
        (squared, (p, t), {"sample_weight": weight}),
        (squared.replace(average_last_axis=True), (p, t), {"sample_weight": weight}),
    ]

    def together() -> list[Any]:
        losses = [spec(*tensors, **more) for spec, tensors, more in calls]
        return [*losses, AUTO.divisor_of(y)]

    # The backend "eager", because only tracing differs.
    compiled = torch.compile(together, backend="eager", fullgraph=True, dynamic=dynamic)
    plans = [registry.adapter("torch").plan(spec, *x, m.get("sample_weight"), None)
             for spec, x, m in calls]  # fmt: skip
    exact = [plan.exact for plan in plans]
    assert exact == [True, False, True, False]
    for found, wanted, same in zip(compiled(), together(), [*exact, True], strict=True):
        torch.testing.assert_close(found, wanted)
        assert torch.equal(found, wanted) or not same


def _Module() -> Any:  # noqa: N802 - torch is not imported yet
    import torch

    class Loss(torch.nn.Module):
        def forward(self, z: Any, y: Any) -> Any:
            return AUTO(z, y)

    return Loss()


@pytest.mark.framework("jax")
def test_jax_is_exact_and_native_where_a_program_is_exported() -> None:
    """jax.export with an unknown batch cannot hold a call to the host."""
    import jax

    wanted = AUTO.rounded("exact")(Z, Y)
    assert jax.jit(AUTO)(Z, Y).tobytes() == wanted.tobytes()
    (rows,) = jax.export.symbolic_shape("n")
    forms = [jax.ShapeDtypeStruct((rows, 5), "float32"), jax.ShapeDtypeStruct((rows,), "int32")]
    exported = jax.export.export(jax.jit(AUTO))(*forms)
    np.testing.assert_allclose(exported.call(Z, Y.astype(np.int32)), wanted, rtol=1e-6)


@pytest.mark.framework("jax")
def test_jax_is_native_where_it_exports_known_shapes() -> None:
    """JAX exports the trace that it has, so the choice is made where the program is lowered."""
    import jax

    def functions(spec: ul.Loss) -> dict[str, Callable[[Any, Any], Any]]:
        return {
            "loss": spec,
            "gradient": jax.grad(spec),
            "value_and_grad": spec.value_and_grad,
            "vmap": jax.vmap(jax.value_and_grad(lambda z, y: spec(z[None], y[None]))),
        }

    auto, exact, native = map(functions, (AUTO, AUTO.rounded("exact"), AUTO.rounded("native")))
    forms = jax.ShapeDtypeStruct(Z.shape, "float32"), jax.ShapeDtypeStruct(Y.shape, "int32")
    z, y, differ = Z * 3, Y.astype(np.int32), False
    for name, function in auto.items():
        program = jax.jit(function)
        found = jax.tree.leaves(program(z, y)), jax.tree.leaves(jax.jit(exact[name])(z, y))
        assert [x.tobytes() for x in found[0]] == [x.tobytes() for x in found[1]]
        saved = jax.export.export(program)(*forms).serialize()
        called = jax.tree.leaves(jax.export.deserialize(saved).call(z, y))
        wanted = jax.tree.leaves(jax.jit(native[name])(z, y))
        assert [x.tobytes() for x in called] == [x.tobytes() for x in wanted]
        differ |= [x.tobytes() for x in called] != [x.tobytes() for x in found[1]]
    assert differ  # so the bits tell which of the two was saved


@pytest.mark.framework("jax")
def test_jax_chooses_on_several_devices_too() -> None:
    """Split by shardings or by jax.shard_map, a call is exact, and its exported program native."""
    from tests.test_jax import run

    run(
        """
        import jax, numpy as np, unifiedloss as ul
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        z = 3 * np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
        y = np.arange(8, dtype=np.int32) % 5
        forms = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (z, y)]
        rows, both = P("d"), Mesh(np.array(jax.devices()), ("d",))
        alone, split = Mesh(np.array(jax.devices()[:1]), ("d",)), NamedSharding(both, rows)
        def programs(spec):
            def mapped(mesh):
                def step(z, y):
                    return spec.replace(reduction="none")(z, y)
                return jax.jit(
                    jax.shard_map(step, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
                )
            for of in (spec, jax.value_and_grad(spec)):
                yield jax.jit(of)
                yield jax.jit(of, in_shardings=(split, split))
            yield from (mapped(both), mapped(alone))
        def bits(tree):
            return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
        auto = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.25, rounding="auto")
        each = zip(*(programs(auto.replace(rounding=r)) for r in ("auto", "exact", "native")))
        differ = 0
        for program, exact, native in each:
            assert bits(program(z, y)) == bits(exact(z, y))
            called = []
            for saved in (jax.export.export(x)(*forms) for x in (program, native)):
                shared = [split, split] if saved.nr_devices == 2 else None
                called.append(bits(jax.jit(saved.call, in_shardings=shared)(z, y)))
            assert called[0] == called[1]
            differ += bits(exact(z, y)) != bits(native(z, y))
        assert differ
        """,
        "--xla_force_host_platform_device_count=2",
    )


@pytest.mark.framework("tensorflow")
def test_tensorflow_is_exact_and_native_where_it_saves(tmp_path: Path) -> None:
    """A saved model is loaded by processes that do not have unifiedloss."""
    import tensorflow as tf

    z, y = tf.constant(Z), tf.constant(Y)
    wanted = AUTO.rounded("exact")(z, y)
    assert AUTO(z, y).numpy() == wanted.numpy()
    forms = [tf.TensorSpec((None, 5), tf.float32), tf.TensorSpec((None,), tf.int64)]
    assert tf.function(AUTO, input_signature=forms)(z, y).numpy() == wanted.numpy()
    module = tf.Module()
    module.loss = tf.function(AUTO, input_signature=forms)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path)).loss
    assert not [op for op in loaded.concrete_functions[0].graph.get_operations() if "Py" in op.type]
    np.testing.assert_allclose(loaded(z, y), wanted, rtol=1e-6)


@pytest.mark.framework("dask")
def test_dask_is_exact_if_its_blocks_are() -> None:
    """The dtype of the array decides, before any block is computed."""
    import dask.array as da

    z, y = da.from_array(Z, chunks=(2, 5)), da.from_array(Y, chunks=2)
    assert AUTO(z, y).compute() == AUTO.rounded("exact")(Z, Y)
    assert AUTO.totals(z, y).dtype == np.int64
    assert AUTO.result(AUTO.totals(z, y)).compute() == AUTO.rounded("exact")(Z, Y)
    assert SMOOTHED.totals(z.astype(np.float64), y).dtype == np.float64
    assert registry.adapter("dask").check(AUTO, z, y) == ()


@pytest.mark.parametrize(
    "backend",
    [
        "numpy",
        *(
            pytest.param(name, marks=pytest.mark.slow("NumPy's run, of the same cases"))
            for name in ("torch", "tensorflow", "jax", "keras")
        ),
    ],
)
@pytest.mark.timeout(3000)
def test_all_native_calls_run_and_stay_within_their_bounds(
    backend: str, pytestconfig: pytest.Config
) -> None:
    """The native conformance cases, run with "auto": nothing raises that did not before."""
    strength = "full" if pytestconfig.getoption("strength") == "all" else "quick"
    report = conformance.run([backend], rounding="auto", strength=strength, max_workers=1)
    assert not report.errors
    for row in report.rows:
        assert row.total.comparisons
        assert not row.failures, "\n\n".join(f"{f.case}: {f.what}" for f in row.failures[:5])
