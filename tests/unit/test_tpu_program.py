"""Products in programs for TPUs: convolutions, which is how XLA writes them, and kernels that say what they compute."""

import pytest

from synthclip_jax.plan.products import Products
from synthclip_jax.plan.tpu_program import read

ROUNDS = 'backend_config={"known_trip_count":{"n":"11"}}'


def program(left: str, right: str, result: str, how: str) -> str:
    return f"""HloModule m
ENTRY %main (a: f32[], b: f32[]) -> f32[] {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {result} convolution(%a, %b), {how}
}}
"""


@pytest.mark.parametrize(
    ("left", "right", "result", "how", "multiplications"),
    [
        ("bf16[6,5]{1,0}", "bf16[5,7]{1,0}", "f32[6,7]{1,0}", "dim_labels=bf_io->bf", 6 * 5 * 7),
        (  # tokens of examples with a matrix
            *("bf16[6,11,5]{2,1,0}", "bf16[5,7,1]{1,0,2}", "bf16[6,11,7]{2,1,0}"),
            *("window={size=1}, dim_labels=b0f_io0->b0f", 6 * 11 * 5 * 7),
        ),
        (  # summed over tokens and examples: a gradient of weights
            *("bf16[6,11,5]{2,1,0}", "bf16[6,11,7]{2,1,0}", "bf16[5,7,1]{1,0,2}"),
            *("window={size=11}, dim_labels=f0b_i0o->bf0", 6 * 11 * 5 * 7),
        ),
        (  # a matrix of each example with another one
            *("bf16[6,3,5]{2,1,0}", "bf16[6,7,5]{2,1,0}", "f32[6,3,7]{2,1,0}"),
            *("window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0oi->0bf", 6 * 3 * 5 * 7),
        ),
        (  # padding is not multiplied
            *("bf16[1,4,2]{2,1,0}", "bf16[3,2,7]{2,1,0}", "bf16[1,4,7]{2,1,0}"),
            *("window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", (3 * 4 - 2) * 2 * 7),
        ),
    ],
)
def test_a_convolution_counts_the_numbers_that_meet(left, right, result, how, multiplications):
    assert read(program(left, right, result, how))[1] == Products(half=2 * multiplications)


@pytest.mark.parametrize(("kind", "name"), [("bf16", "half"), ("f32", "float32")])
def test_what_is_float32_and_exact_is_told_apart(kind, name):
    how = "dim_labels=bf_oi->bf, operand_precision={highest,highest}"
    products = read(program(f"{kind}[6,5]{{1,0}}", f"{kind}[7,5]{{1,0}}", "f32[6,7]{1,0}", how))[1]
    assert products == Products(**{name: 2 * 6 * 5 * 7})
    assert products.seconds(1e3, float32_cost=6) == (6 if kind == "f32" else 1) * products.flops / 1e3


def test_eight_bits_count_at_their_own_speed():
    products = read(program("s8[6,5]{1,0}", "s8[5,7]{1,0}", "s32[6,7]{1,0}", "dim_labels=bf_io->bf"))[1]
    assert products == Products(eight=2 * 6 * 5 * 7)
    assert products.flops == 2 * 6 * 5 * 7
    assert products.seconds(1e3, float32_cost=6, eight_bits_gain=2) == products.flops / 2e3


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_kernel_in_a_loop_counts_as_often_as_it_runs_with_what_it_reads_and_writes(direction):
    cost = '"cost_estimate":{"flops":"1000","transcendentals":"3","bytes_accessed":"8192"}'
    call = f'metadata={{op_name="jit(f)/attention_{direction}/pallas_call"}}'
    call += f', backend_config={{"custom_call_config":{{"body":"x",{cost}}}}}'
    text = f"""HloModule m
%body (p: (s32[], bf16[2,8,128])) -> (s32[], bf16[2,8,128]) {{
  %p = (s32[], bf16[2,8,128]{{2,1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[2,8,128]{{2,1,0}} get-tuple-element(%p), index=1
  %k = bf16[2,8,128]{{2,1,0}} custom-call(%x), custom_call_target="tpu_custom_call", {call}
  ROOT %t = (s32[], bf16[2,8,128]{{2,1,0}}) tuple(%i, %k)
}}
%condition (p: (s32[], bf16[2,8,128])) -> pred[] {{
  %p.1 = (s32[], bf16[2,8,128]{{2,1,0}}) parameter(0)
  ROOT %done = pred[] constant(false)
}}
ENTRY %main (a: bf16[2,8,128]) -> (s32[], bf16[2,8,128]) {{
  %a = bf16[2,8,128]{{2,1,0}} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], bf16[2,8,128]{{2,1,0}}) tuple(%zero, %a)
  ROOT %loop = (s32[], bf16[2,8,128]{{2,1,0}}) while(%init), body=%body, condition=%condition, {ROUNDS}
}}
"""
    traffic, products = read(text)
    assert products == Products(half=11 * 1000, **{f"attention_{direction}": 11})
    assert traffic.memory == 11 * 2 * 2 * 8 * 128 * 2
