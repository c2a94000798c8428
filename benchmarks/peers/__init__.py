"""Peers at equal compute: one set of samples and one budget of processor time for several ways to learn retrieval and
visual question answering.

Retrieval of images by their captions, from scratch or from trained towers, and answers to questions about drawn scenes,
from scratch. Each contender is tuned with the same number of short trials on samples that its training does not show,
then trained once per seed and scored on the test splits. Every run writes its result, and a repeated command continues
with the runs that are missing:

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.peers FOLDER -o runs/peers
    python -m benchmarks.peers FOLDER -o runs/peers --minutes 1 --trial-minutes 0.3 --peers clip eve
    python -m benchmarks.peers FOLDER -o runs/peers --towers VISION_FOLDER TEXT_FOLDER
    python -m benchmarks.peers FOLDER -o runs/peers --report docs/peers.md

Results of other images, or of another --gallery, --train or --tests, are refused: give those a folder of their own.

Where half a minute does not tell the learning rates of a contender apart, give it longer trials first
(`--trial-minutes 2 --peers clip siglip`); the longest that are finished count.

FOLDER holds images and a captions.jsonl, such as examples/emoji builds. `open-clip` takes part if it is installed;
`frozen` and `vle` need --towers, such as examples/real_towers builds.

The budget is the processor time of training on one thread, reading of images included; evaluation is not counted. Other
work on the machine is not counted either, but slows training down by what it takes of caches and memory: on two cores,
with tests beside the runs, the number of steps varied by a quarter. Leave the machine alone for figures to compare.
"""
