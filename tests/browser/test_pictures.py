"""New images: choosing, watching the steps, keeping the results."""

from __future__ import annotations

import base64
import zipfile

import pytest

from browser.fake import CSP, FakeServer, images, picture, samples
from browser.page import Page


def test_pictures_of_the_chosen_classes_with_the_settings_of_the_form(page: Page, fake: FakeServer) -> None:
    page.classes("T-shirt/top", "Bag")
    page.fill("[name=num_samples]", 3)
    page.fill("[name=seed]", 7)
    assert page.finish() == "6 images in 0.2 s, seed 7."
    ((path, body),) = fake.seen
    assert path == "/v1/images/stream"
    settings = {"num_samples": 3, "num_steps": 6, "guidance_scale": 2.0, "seed": 7}
    assert body == {"model": "clothes", "class_ids": [0, 1], **settings}
    expected = [base64.b64decode(image["png"]) for image in images(body)["images"]]
    assert [page.png(f".thumbs li:nth-child({k + 1}) img") for k in range(6)] == expected
    assert page.png() == expected[0]
    assert [thumb.text for thumb in page.all(".thumbs li")] == ["T-shirt/top"] * 3 + ["Bag"] * 3


def test_another_picture_is_shown_large_when_it_is_chosen(page: Page) -> None:
    page.finish()
    page.click(".thumbs li:nth-child(3) button")
    assert page.png() == page.png(".thumbs li:nth-child(3) img") != page.png(".thumbs li:nth-child(1) img")
    assert [b.get_attribute("aria-pressed") for b in page.all(".thumbs button")] == ["false", "false", "true", "false"]
    assert page.one(".hero img").get_attribute("alt") == "T-shirt/top, 3 of 4, step 6 of 6"


def test_the_slider_goes_back_through_the_steps_of_picture_and_map(page: Page) -> None:
    page.finish()
    assert page.one("canvas").get_attribute("aria-label").startswith("128 of 128 codes known")
    page.slide(".steps input", 2)
    assert page.png() == base64.b64decode(picture("step", 2, 0, 0))
    assert page.png(".thumbs li:nth-child(2) img") == base64.b64decode(picture("step", 2, 1, 0))
    # 8 positions with 2 known levels, 8 with 3.
    assert page.one(".heat figcaption").text == "40 of 128 codes known"
    assert page.one("canvas").get_attribute("aria-label").endswith("from 2 to 3 of 8 levels per position")
    page.slide(".steps input", 6)
    assert page.png() == base64.b64decode(picture("final", 0, 0, 0))


def test_the_map_has_a_cell_per_position_in_the_colour_of_its_levels(page: Page) -> None:
    page.finish()
    page.slide(".steps input", 2)
    script = """const c = arguments[0], p = c.getContext('2d'), s = c.width / 4;
        return [0, 1].map((k) => [...p.getImageData((k + 0.1) * s, 0.1 * s, 1, 1).data.slice(0, 3)])"""
    # Shares of 2/8 and 3/8 of the ramp: its second colour, and half way to its third.
    assert page.run(script, page.one("canvas")) == [[59, 82, 139], [46, 114, 140]]


def test_steps_arrive_while_they_are_made_and_cancel_breaks_off(page: Page, fake: FakeServer) -> None:
    fake.hold_at = 3
    page.fill("[name=num_steps]", 60)
    page.click("button.primary")
    page.wait(lambda: page.run("return arguments[0].value", page.one("progress")) >= 3)
    assert page.one(".hero img").is_displayed() and page.one(".heat").is_displayed()
    assert page.status() == "Generating 4 images …"
    assert not page.one("button.save").is_enabled()
    page.click("button.cancel")
    assert page.end() == "Cancelled."
    assert page.focus() == page.one("button.primary")  # a hidden button keeps no focus
    fake.released.set()
    assert page.wait(lambda: fake.broken_off.is_set(), "the end of the server's work")
    page.fill("[name=num_steps]", 5)
    assert page.finish() == "4 images in 0.2 s, seed 0."


def test_a_second_press_while_a_request_runs_sends_nothing(page: Page, fake: FakeServer) -> None:
    fake.hold_at = 0
    page.run("for (let k = 0; k < 3; k++) arguments[0].click()", page.one("button.primary"))
    fake.released.set()
    page.end()
    assert len(fake.seen) == 1


def test_without_the_steps_only_results_are_asked_for(page: Page, fake: FakeServer) -> None:
    page.click("[name=watch]")
    assert page.finish() == "4 images in 0.2 s, seed 0."
    assert [path for path, _ in fake.seen] == ["/v1/images"]
    assert page.png() == base64.b64decode(picture("final", 0, 0, 0))
    assert not page.one(".steps").is_displayed() and not page.one(".heat").is_displayed()


_WRONG = [
    ("num_steps", "0", "Steps must be a whole number from 1 to 64."),
    ("num_steps", "65", "Steps must be a whole number from 1 to 64."),
    ("num_steps", "1.5", "Steps must be a whole number from 1 to 64."),
    ("guidance_scale", "-1", "Guidance must be a number from 0 to 20."),
    ("guidance_scale", "", "Guidance must be a number from 0 to 20."),
    ("seed", "-3", "The seed must be a whole number from 0 to 4294967295."),
    ("num_samples", "33", "The number of images must be a whole number from 1 to 32."),
]


def test_a_wrong_number_is_named_beside_its_field_and_not_sent(page: Page, fake: FakeServer) -> None:
    for field, value, message in _WRONG:
        page.fill(f"[name={field}]", value)
        assert page.finish() == "Not done: see the message beside the field."
        assert page.error_of(f"[name={field}]") == message
        assert page.errors() == [message]
        assert page.focus() == page.one(f"[name={field}]")
        page.fill(f"[name={field}]", "2")
        assert page.errors() == []  # typing takes it back
    assert not fake.seen


def test_all_wrong_numbers_are_named_at_once(page: Page) -> None:
    page.fill("[name=num_steps]", "0")
    page.fill("[name=seed]", "x")
    page.finish()
    assert len(page.errors()) == 2


def test_more_pictures_than_the_server_makes_are_counted(page: Page, fake: FakeServer) -> None:
    page.classes("T-shirt/top", "Bag", "Ankle boot")
    page.fill("[name=num_samples]", 11)
    page.finish()
    message = "3 classes times 11 are 33; this server makes 32 at most at once."
    assert page.error_of("[name=num_samples]") == message
    assert not fake.seen


def test_no_class_is_a_mistake_beside_the_classes(page: Page, fake: FakeServer) -> None:
    page.classes()
    page.finish()
    assert page.error_of(".classes") == "Choose at least one class."
    assert not fake.seen
    page.classes("Bag")
    assert page.errors() == []


def test_many_classes_can_be_searched_and_keep_what_is_chosen(page: Page, fake: FakeServer) -> None:
    page.choose("[name=model]", "animals")
    page.classes("animal 17")
    page.fill("#pictures-filter", "animal 2")
    labels = [chip.text.removeprefix("✓ ") for chip in page.all(".chip") if chip.is_displayed()]
    assert labels == ["animal 2", "animal 17", *(f"animal {k}" for k in range(20, 30))]
    page.finish()
    assert fake.seen[0][1]["class_ids"] == [17]
    assert fake.seen[0][1]["model"] == "animals"


def test_a_model_without_classes_asks_for_none(page: Page, fake: FakeServer) -> None:
    fake.models = [{**fake.models[0], "classes": []}]
    page.load()
    assert not page.one(".classes").is_displayed()
    page.finish()
    assert "class_ids" not in fake.seen[0][1]


def test_a_model_of_several_axes_has_a_field_for_each(page: Page, fake: FakeServer) -> None:
    axes = [{"name": "style", "classes": fake.models[0]["classes"]}, {"name": "colour", "classes": ["red", "blue"]}]
    fake.models = [{**fake.models[0], "axes": axes}, fake.models[1]]
    page.load()
    page.classes("Bag", "Ankle boot")
    page.fill("[name=num_samples]", 1)
    assert [label.text for label in page.all(".axes label")] == ["colour"]
    page.finish()
    assert fake.seen[0][1]["class_ids"] == [{"style": "Bag"}, {"style": "Ankle boot"}], "any colour"
    page.choose(".axes select", "blue")
    page.finish()
    assert fake.seen[1][1]["class_ids"] == [{"style": name, "colour": "blue"} for name in ("Bag", "Ankle boot")]
    assert [thumb.text for thumb in page.all(".thumbs li")] == ["Bag, blue", "Ankle boot, blue"]
    page.choose("[name=model]", "animals")
    assert not page.one(".axes").is_displayed()


def test_an_edit_says_every_axis(page: Page, fake: FakeServer) -> None:
    axes = [{"name": "style", "classes": fake.models[0]["classes"]}, {"name": "colour", "classes": ["red", "blue"]}]
    axes += [{"name": "lining", "classes": ["blue", "none"]}, {"name": "strap", "classes": ["none", "long", "Bag"]}]
    fake.models = [{**fake.models[0], "axes": axes}]
    page.load()
    page.classes("Bag")
    page.fill("[name=num_samples]", 1)
    page.choose("[data-axis=lining]", "blue")
    page.choose("[data-axis=strap]", "long")
    page.finish()
    page.click(".use-edit")
    page.wait(lambda: page.view() == "edit" and page.one(".source-hint").text.startswith("Generated"))
    chosen = "return [...document.querySelectorAll('#edit-axes select')].map((one) => one.selectedOptions[0].text)"
    assert page.run(chosen) == ["any", "blue", "long"], "as the image was generated"
    page.choose("[data-axis=colour]", "red")
    page.slide("[name=keep_levels]", 1)
    page.fill("[name=num_samples]", 1)
    page.finish()
    path, fields = fake.seen[-1]
    assert path == "/v1/images/edit" and fields["class_id"] == "style=Bag, colour=red, lining=blue, strap=long"


def test_a_new_seed_is_another_one(page: Page) -> None:
    seeds = set()
    for _ in range(3):
        page.click(".new-seed")
        seeds.add(page.one("[name=seed]").get_attribute("value"))
    assert len(seeds - {"0"}) >= 2


def test_a_picture_is_kept_as_the_servers_png(page: Page) -> None:
    page.fill("[name=seed]", 31)
    page.finish()
    page.slide(".steps input", 1)  # what is kept is the finished image, whatever is shown
    page.click("button.save")
    expected = base64.b64decode(picture("final", 0, 0, 31))
    assert page.downloaded("t-shirt-top-31-0.png").read_bytes() == expected


def test_all_pictures_are_kept_in_one_archive(page: Page) -> None:
    page.fill("[name=seed]", 32)
    page.fill("[name=num_samples]", 2)
    page.finish()
    page.click("button.save-all")
    with zipfile.ZipFile(page.downloaded("clothes-32.zip")) as archive:
        assert archive.testzip() is None
        files = {name: archive.read(name) for name in archive.namelist()}
    assert files == {f"t-shirt-top-32-{k}.png": base64.b64decode(picture("final", 0, k, 32)) for k in range(2)}


def test_replay_shows_the_steps_again_and_ends_at_the_last(page: Page) -> None:
    page.finish()
    page.click(".replay")
    page.wait(lambda: page.one(".steps output").text != "6 of 6")
    page.wait(lambda: page.one(".steps output").text == "6 of 6")
    assert page.png() == base64.b64decode(picture("final", 0, 0, 0))


def test_names_from_the_server_are_text_and_no_markup(page: Page, fake: FakeServer) -> None:
    hostile = "<img src=x onerror=document.title='run'>"
    fake.models = [{**fake.models[0], "classes": [hostile], "description": hostile}]
    page.load()
    assert page.one(".chip").text.endswith(hostile)
    assert page.one("#pictures-model-hint").text == hostile
    assert page.driver.title == "New images – resgen"


def test_the_page_needs_nothing_that_its_policy_forbids(page: Page) -> None:
    assert "unsafe" not in CSP
    page.finish()
    assert page.console() == []


def test_on_arrival_stand_pictures_of_the_model_and_how_good_it_is(page: Page, fake: FakeServer) -> None:
    page.wait(lambda: len(page.all(".gallery.samples .thumbs li")) == 3)
    assert page.one(".about h3").text == "Made by this model"
    assert page.one(".measured").text == "intended class recognised: 98.1 %\ntokenizer: 25.3 dB"
    assert page.png(".thumbs li:nth-child(2) img") == base64.b64decode(samples("clothes")["images"][1]["png"])
    assert not page.one(".empty").is_displayed() and not fake.seen
    page.choose("[name=model]", "animals")
    page.wait(lambda: len(page.all(".gallery.samples .thumbs li")) == 12)
    page.finish()
    assert not page.one(".about").is_displayed() and not page.all(".gallery.samples")


def test_samples_that_cannot_be_had_leave_the_page_usable(page: Page, fake: FakeServer) -> None:
    fake.samples_fault = {"status": 429, "error": "too many requests wait", "retry_after": 1}
    page.choose("[name=model]", "animals")
    page.wait(lambda: page.one(".empty p").text.startswith("No samples: too many requests wait."))
    assert page.finish() == "4 images in 0.2 s, seed 0."
    assert not page.one(".empty").is_displayed()


@pytest.mark.parametrize("fault", [None, {"status": 503, "error": "the server is loading"}])
def test_samples_that_come_late_leave_the_result(page: Page, fake: FakeServer, fault: dict | None) -> None:
    fake.samples_held, fake.samples_fault = True, fault
    page.choose("[name=model]", "animals")
    page.finish()
    result = page.png()
    late = "return performance.getEntriesByType('resource').filter((e) => e.name.endsWith('animals')).length"
    assert page.run(late) == 0, "the samples came first"
    fake.samples_released.set()
    page.wait(lambda: page.run(late) == 1)
    page.run("return new Promise((done) => setTimeout(done, 100))")
    assert page.png() == result and page.one(".gallery").is_displayed() and len(page.all(".thumbs li")) == 4


def test_enter_in_the_field_that_finds_classes_sends_nothing(page: Page, fake: FakeServer) -> None:
    page.choose("[name=model]", "animals")
    page.fill("#pictures-filter", "animal 2\ue007")
    assert page.status() == "" and not fake.seen


def test_samples_that_arrive_during_a_request_stand_there_after_it_is_cancelled(page: Page, fake: FakeServer) -> None:
    fake.samples_held, fake.hold_at = True, 0
    page.load()
    page.click("button.primary")
    page.wait(lambda: page.status().startswith("Generating"))
    fake.samples_released.set()
    page.wait(lambda: len(page.all(".thumbs li")) == 3)
    page.click("button.cancel")
    assert page.end() == "Cancelled."
    assert page.one(".gallery.samples").is_displayed() and not page.one(".empty").is_displayed()


def test_another_model_takes_the_earlier_result_and_its_status_away(page: Page, fake: FakeServer) -> None:
    page.finish()
    fake.samples_held = True
    page.choose("[name=model]", "animals")
    page.wait(lambda: page.one(".empty").text == "The model is drawing sample images …")
    assert page.status() == ""
