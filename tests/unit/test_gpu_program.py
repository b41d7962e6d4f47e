"""Programs for NVIDIA GPUs, as XLA writes them: what they move and compute, on small ones whose numbers are known."""

import pytest

from synthclip_jax.plan.gpu_program import read
from synthclip_jax.plan.products import Products
from synthclip_jax.plan.traffic import Collective

# A loop of three rounds that writes a row of 4 x 8 numbers into a stack on another stream, each the product of two
# matrices in Triton's language.
LOOP = """HloModule jit_step, is_scheduled=true, num_partitions=1

%gemm_computation (p0: bf16[4,16], p1: bf16[16,8]) -> bf16[4,8] {
  %p0 = bf16[4,16]{1,0} parameter(0)
  %p1 = bf16[16,8]{1,0} parameter(1)
  ROOT %dot = bf16[4,8]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%update_computation (p0: bf16[3,4,8], p1: s32[], p2: bf16[4,8]) -> bf16[3,4,8] {
  %p0 = bf16[3,4,8]{2,1,0} parameter(0)
  %p2 = bf16[4,8]{1,0} parameter(2)
  %row = bf16[1,4,8]{2,1,0} bitcast(%p2)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %dus = bf16[3,4,8]{2,1,0} dynamic-update-slice(%p0, %row, %p1, %zero, %zero)
}

%body (arg: (s32[], bf16[3,4,8], bf16[4,16], bf16[16,8])) -> (s32[], bf16[3,4,8], bf16[4,16], bf16[16,8]) {
  %arg = STATE parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %stack = bf16[3,4,8]{2,1,0} get-tuple-element(%arg), index=1
  %a = bf16[4,16]{1,0} get-tuple-element(%arg), index=2
  %b = bf16[16,8]{1,0} get-tuple-element(%arg), index=3
  %gemm = bf16[4,8]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm_computation, backend_config={"kind":"__triton"}
  %start = (GIVEN, bf16[3,4,8]{2,1,0}, u32[]) fusion-start(%stack, %i, %gemm), kind=kLoop, calls=%update_computation
  %done = bf16[3,4,8]{2,1,0} fusion-done(%start)
  ROOT %out = STATE tuple(%i, %done, %a, %b)
}

%condition (arg.1: (s32[], bf16[3,4,8], bf16[4,16], bf16[16,8])) -> pred[] {
  %arg.1 = STATE parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i.1, %three), direction=LT
}

ENTRY %main (x: (s32[], bf16[3,4,8], bf16[4,16], bf16[16,8])) -> (s32[], bf16[3,4,8], bf16[4,16], bf16[16,8]) {
  %x = STATE parameter(0)
  ROOT %while = STATE while(%x), condition=%condition, body=%body
}
"""
LOOP = LOOP.replace("GIVEN", "(bf16[3,4,8]{2,1,0}, s32[], bf16[4,8]{1,0})")
LOOP = LOOP.replace("STATE", "(s32[], bf16[3,4,8]{2,1,0}, bf16[4,16]{1,0}, bf16[16,8]{1,0})")


def entry(body: str, devices: int = 1) -> str:
    """A program of these lines."""
    return f"HloModule jit_step, num_partitions={devices}\n\nENTRY %main () -> f32[] {{\n{body}\n}}\n"


def custom(target: str, config: str) -> str:
    return f'custom_call_target="__{target}", backend_config={config}'


def test_a_loops_products_and_updates_count_as_often_as_it_runs_and_an_update_in_place_moves_its_row_alone():
    traffic, products = read(LOOP)
    # Two factors and a product; the row read and written, and the number of the row; the loop's condition.
    assert traffic.memory == 3 * ((4 * 16 + 16 * 8 + 4 * 8) * 2 + 2 * 4 * 8 * 2 + 4)
    assert traffic.loops_unknown == 0
    assert products == Products(half=3 * 2 * 4 * 16 * 8)


@pytest.mark.parametrize(
    ("kind", "precision", "name"),
    [
        ("s8", "DEFAULT", "eight"),
        ("bf16", "DEFAULT", "half"),
        ("f32", "DEFAULT", "tf32"),
        ("f32", "HIGHEST", "float32"),
    ],
)
@pytest.mark.parametrize("call", ["gemm", "lt$matmul"])
def test_a_product_of_cublas_moves_factors_and_result_but_not_its_scratch_space(call, kind, precision, name):
    config = (
        '{"gemm_backend_config": {"alpha_real": 1, "dot_dimension_numbers": {"lhs_contracting_dimensions": ["2"], '
        '"rhs_contracting_dimensions": ["1"], "lhs_batch_dimensions": ["0"], "rhs_batch_dimensions": ["0"]}, '
        f'"precision_config": {{"operand_precision": ["{precision}", "{precision}"], "algorithm": "ALG_UNSET"}}}}}}'
    )
    traffic, products = read(
        entry(f"""  %a = {kind}[5,32,64]{{2,1,0}} parameter(0)
  %b = {kind}[5,64,16]{{2,1,0}} parameter(1)
  ROOT %gemm = (f32[5,32,16]{{2,1,0}}, s8[33554432]{{0}}) custom-call(%a, %b), {custom("cublas$" + call, config)}""")
    )
    size = {"s8": 1, "bf16": 2, "f32": 4}[kind]
    assert traffic.memory == 5 * ((32 * 64 + 64 * 16) * size + 32 * 16 * 4)
    assert products == Products(**{name: 5 * 2 * 32 * 64 * 16})
    costs = {"eight": 0.5, "half": 1, "tf32": 2, "float32": 15}
    assert products.seconds(peak=1e6, float32_cost=15) == pytest.approx(costs[name] * products.flops / 1e6)


@pytest.mark.parametrize(("mask", "share"), [("NO_MASK", 1), ("PADDING", 1), ("CAUSAL", 0.5), ("PADDING_CAUSAL", 0.5)])
def test_fused_attention_moves_no_scores_and_has_products_of_its_own(mask, share):
    config = (
        '{"operation_queue_id": "0", "cudnn_fmha_backend_config": {"fmha_scale": 0.125, "intermediate_tensor_shape": '
        '{"element_type": "BF16", "dimensions": ["2", "3", "10", "10"], "tuple_shapes": []}, '
        f'"is_flash_attention": true, "mask_type": "{mask}", "bmm1_dot_dimension_numbers": '
        '{"lhs_contracting_dimensions": ["3"]}}}'
    )
    call = custom("cudnn$fmhaSoftmax", config)
    forward = f"""  %q = bf16[2,10,3,8]{{3,2,1,0}} parameter(0)
  %k = bf16[2,10,3,8]{{3,2,1,0}} parameter(1)
  %v = bf16[2,10,3,8]{{3,2,1,0}} parameter(2)
  %fwd = (bf16[2,3,10,8]{{3,1,2,0}}, f32[2,3,10]{{2,1,0}}, u8[77]{{0}}) custom-call(%q, %k, %v), {call}
  %out = bf16[2,3,10,8]{{3,1,2,0}} get-tuple-element(%fwd), index=0
  %sums = f32[2,3,10]{{2,1,0}} get-tuple-element(%fwd), index=1
"""
    heads, stats = 2 * 3 * 10 * 8 * 2, 2 * 3 * 10 * 4
    product = share * 2 * (2 * 3 * 10 * 10) * 8
    traffic, products = read(entry(forward))
    assert traffic.memory == 4 * heads + stats
    assert products == Products(half=2 * product, attention_forward=1)
    gradients = ", ".join(3 * ["bf16[2,3,10,8]{3,1,2,0}"])
    call = custom("cudnn$fmhaSoftmaxBackward", config)
    backward = f"""  %g = bf16[2,10,3,8]{{3,2,1,0}} parameter(3)
  ROOT %bwd = ({gradients}, u8[0]{{0}}) custom-call(%q, %k, %v, %sums, %out, /*index=5*/%g), {call}
"""
    traffic, products = read(entry(forward + backward))
    assert traffic.memory == (4 * heads + stats) + (8 * heads + stats)
    assert products == Products(half=7 * product, attention_forward=1, attention_backward=1)


def test_collectives_that_run_beside_other_work_are_counted_once_with_their_payload():
    text = entry(
        """  %x = f32[1000]{0} parameter(0)
  %y = f32[125]{0} parameter(1)
  %sum = f32[1000]{0:S(1)} all-reduce-start(%x), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %summed = f32[1000]{0:S(1)} all-reduce-done(%sum)
  %gather = (f32[125]{0}, f32[1000]{0}) all-gather-start(%y), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  %gathered = f32[1000]{0} all-gather-done(%gather)
  %scatter = ((f32[1000]{0}), f32[125]{0}) async-start(%gathered), calls=%scatter_computation
  ROOT %scattered = f32[125]{0} async-done(%scatter)""",
        devices=8,
    )
    text += """
%scatter_computation (p: f32[1000]) -> f32[125] {
  %p = f32[1000]{0} parameter(0)
  ROOT %part = f32[125]{0} reduce-scatter(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}
"""
    traffic, products = read(text)
    assert {collective.kind: collective for collective in traffic.collectives} == {
        "all-reduce": Collective("all-reduce", 1, 4000, 4000 * 2 * 7 / 8),
        "all-gather": Collective("all-gather", 1, 4000, 4000 * 7 / 8),
        "reduce-scatter": Collective("reduce-scatter", 1, 4000, 4000 * 7 / 8),
    }
    # What NCCL has registered, space 1, is the card's memory as well.
    assert traffic.memory == 2 * 4000 + (500 + 4000) + (4000 + 500)
    assert products == Products()
