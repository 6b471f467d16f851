"""Export the trained student of a finished run; the exported file is checked against the checkpoint, and timed.

python scripts/export.py run=outputs/runs/... to=onnx                    into <run>/exports, with a JSON beside
python scripts/export.py run=0123456789ab to=torch_export out=net.pt2    a run by its key; for torch.export.load
python scripts/export.py run=... to=safetensors predictor=student_2      for kdrun.load, and by timm's own names
python scripts/export.py run=... to=hf_dir out=my-student                for timm.create_model("local-dir:my-student")
python scripts/export.py run=... to=onnx dynamic=false batch=8 opset=20 threads=1 overwrite=true
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdrun.cli.command import launch

if __name__ == "__main__":
    launch("kdrun.cli.export", __doc__)
