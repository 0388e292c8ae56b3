"""What a user submits: thin commands over the pipelines and the model. Each is `python -m jobs.NAME --help`.

Ray reads its environment once, when it is first imported. This package is imported before anything imports Ray, so it
is the place where a private cluster's settings are made; a job on somebody's cluster keeps that cluster's.
"""

import os

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the jobs draw their own
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",  # its load reports list what a part leaves out on purpose
    "DIFFUSERS_VERBOSITY": "error",
}
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: every Ray process binds 127.0.0.1
    "RAY_AUTH_MODE": "disabled",  # nobody else can reach it, and no token file is left in the home folder
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # each report waits for this poll
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor of every run, and the end of its one node is never announced
}

for _name, _value in (_ALWAYS if "RAY_ADDRESS" in os.environ else _ALWAYS | _PRIVATE).items():
    os.environ.setdefault(_name, _value)
