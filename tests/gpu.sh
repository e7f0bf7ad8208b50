#!/usr/bin/env bash
# On a machine with a GPU: every test that needs one, the kernels under compute-sanitizer where that is installed, then
# the benchmarks. PYTHON chooses the interpreter; run it from the repository.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
"$python" -c 'import torch; assert torch.cuda.is_available(), "PyTorch sees no GPU"; print(torch.cuda.get_device_name())'
"$python" -m pytest -q -k gpu tests
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$python" -m pytest -q -x -k gpu tests/test_kernels_pointnet2.py tests/test_kernels_knn.py \
            tests/test_kernels_chamfer.py tests/test_emd.py
    done
else
    echo "compute-sanitizer is not installed: the kernels were not run under it"
fi
"$python" -m benchmarks.bench_extensions --device cuda
"$python" -m benchmarks.bench_train_step --device cuda --amp none bf16
"$python" -m benchmarks.bench_data --device cuda
