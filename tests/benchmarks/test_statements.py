"""Hand-written statements, in NLVR's layout."""

from collections import Counter

from benchmarks.statements import EACH, SCATTERED, TOWERS, examples, main

from evle.data.corpora.nlvr import nlvr


def test_the_folder_reads_as_nlvr_with_as_many_true_as_false_statements(tmp_path, capsys):
    main(["-o", str(tmp_path)])
    samples = nlvr(tmp_path, split="dev", orders=1)
    assert len(samples) == EACH * (len(TOWERS) + len(SCATTERED))
    answers = Counter((sample.question, sample.answers[0]) for sample in samples)
    assert set(answers.values()) == {EACH // 2}
    assert nlvr(tmp_path, split="dev")[5].key == "dev-0-0-5"


def test_truths_are_those_of_the_words():
    for text, truth, boxes in examples():
        colors = [[item.colour for item in box] for box in boxes]
        items = [item for box in boxes for item in box]
        shapes = [item.shape for item in items]
        if text.startswith("Not a single block is blue"):
            assert truth == all(item.colour != "blue" for item in items)
        if text.startswith("Triangles outnumber"):
            assert truth == (shapes.count("triangle") > shapes.count("circle"))
        if text.startswith("The highest tower"):
            assert truth == (max(colors, key=len)[-1] == "yellow")
