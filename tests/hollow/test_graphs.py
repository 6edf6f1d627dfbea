"""What AOTInductor makes of some graphs of TINY is as in graphs.json; `graph_table.py --check` compares all rows. With
-m '' also every graph of the preview model at full size: about half an hour."""

import json

import pytest
from hollow.graph_table import REPORT, TINY, count_calls, differences, graphs, measured, release, render

PART = ("block", "face", "decode_next")
LAUNCH = "    // Topologically Sorted Source Nodes: [x], Original ATen: [{}]\n    call_{}(arg0_1, buf0, 8L, stream);\n"


@pytest.fixture(scope="module")
def rows():
    """Of graphs: as kept, and as made now."""
    kept = json.loads(TINY.read_text())["rows"].get(release(), {}).get("sm_90", {})
    part = [name for name in PART if name in kept]
    return kept, dict(measured("tiny", part, 90))


@pytest.mark.parametrize("name", PART)
def test_a_graph_is_compiled_as_before(name, rows):
    kept, made = rows
    if name not in made:
        pytest.skip(f"graphs.json has no row of {name} for PyTorch {release()}")
    assert differences(kept[name], made[name]) == [], "if it is meant, graph_table.py --again makes the table anew"


@pytest.mark.full
@pytest.mark.parametrize("arch", [90, 89])
@pytest.mark.parametrize("name", graphs("preview"))
def test_a_graph_at_full_size_is_compiled_as_before(name, arch):
    kept = json.loads(REPORT.with_suffix(".json").read_text())["rows"].get(release(), {}).get(f"sm_{arch}", {})
    if name not in kept:
        pytest.skip(f"{REPORT.name} has no row of {name} for PyTorch {release()} and sm_{arch}")
    ((_, made),) = measured("preview", [name], arch)
    assert differences(kept[name], made) == []


@pytest.mark.parametrize(
    ("launches", "expected"),
    [
        ([("aten.clone, aten.slice", "triton_poi_fused_clone_slice_4")], {"copies": 1, "clones": 1}),
        ([("aten.cat, aten.clone", "triton_poi_fused_cat_clone_4")], {"copies": 1, "cats": 1}),
        ([("aten.clone, aten.add", "triton_poi_fused_add_clone_4")], {}),
        ([("aten.view, aten.convolution", "triton_poi_fused_convolution_4")], {"bias": 1}),
        ([("aten.add, aten.convolution", "triton_poi_fused_convolution_4")], {}),
        ([("aten.clone", "modulated_norm_kernel_2")], {"ours": 1}),
    ],
)
def test_launches_are_told_apart_by_what_they_stand_for(launches, expected):
    wrapper = "::run_impl(\n" + "".join(LAUNCH.format(*launch) for launch in launches)
    row = count_calls(wrapper + "} // AOTInductorModel::run_impl", [])
    assert {key: count for key, count in row.items() if count} == {"kernels": len(launches), **expected}


def test_calls_of_libraries_and_operators_are_counted_by_name():
    body = """::run_impl(
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(3, int_array_8, int_array_9, 0, 0, 0, &buf0_handle));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(buf2, arg11_1, buf0, arg10_1, 1L, 1L));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(buf3, arg11_1, buf0, arg10_1, 1L, 1L));
        aoti_torch_proxy_executor_call_function(proxy_executor, 1, 0, std::array<int64_t, 0>{}.data(), 4, 0);
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(arg0_1, buf3, 0));
    } // AOTInductorModel::run_impl
    aoti_torch_cuda_addmm_out(what, follows, is, another, function);"""
    row = count_calls(body, ["a::first", "a::second"])
    assert row["extern"] == {"a::second": 1, "addmm": 2, "copy_": 1}
    assert (row["kernels"], row["copies"], row["clones"]) == (0, 1, 0)


def test_a_generated_kernel_that_says_not_what_it_stands_for_is_refused():
    one = LAUNCH.format("aten.add", "triton_poi_fused_add_1")
    with pytest.raises(ValueError, match="triton_poi_fused_add_2"):
        count_calls(f"::run_impl(\n{one}    call_triton_poi_fused_add_2(buf0);\n}} // AOTInductorModel::run_impl", [])


def test_the_report_is_what_its_figures_say():
    assert REPORT.with_suffix(".md").read_text() == render(json.loads(REPORT.with_suffix(".json").read_text()))
