"""The entry point of a Ray job: `ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/run.py RECIPE`.

Takes a recipe and `mapsto run`'s options, or one of its verbs first: `jobs/run.py train RECIPE --set train.epochs=3`.
"""

import sys

from mapsto.cli import VERBS, main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(words if words and words[0] in VERBS else ["run", *words]))
