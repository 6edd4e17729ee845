#!/usr/bin/env bash
# lightning 2.6.6 (torch 2.13.0): a training that SIGTERM ends half-way leaves its process with exit status 0.
#
# Schedulers send SIGTERM to jobs that they preempt, and see from the exit status whether a job is done. Trainer.fit
# answers the signal after the current step by raising an exception that is a SystemExit without a code, so that the
# process ends as one that succeeded, though the epochs are not finished and what follows fit was not run.
#
# Seen:
#   exit status 0, epochs finished: no
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 lightning==2.6.6 numpy
cat > "$folder/run.py" <<'PYTHON'
import logging
import os
import signal
import warnings

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

import lightning
import torch
from torch.utils.data import DataLoader


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", **quiet)
trainer.fit(Model(), DataLoader(torch.ones(8, 1), batch_size=1))
print("all epochs done")
PYTHON
status=0
"$folder/env/bin/python" "$folder/run.py" > "$folder/printed" 2> "$folder/errors" || status=$?
finished=no
grep -q 'all epochs done' "$folder/printed" && finished=yes
echo "exit status $status, epochs finished: $finished" | tee "$folder/seen"
grep -qxF 'exit status 0, epochs finished: no' "$folder/seen"
