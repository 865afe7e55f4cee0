"""A user who operates a page in a browser."""

import base64
import re


class User:
    """The actions of a user, and what a user sees."""

    def __init__(self, driver, webdriver):
        self.driver, self.keys = driver, webdriver.Keys
        self._actions = lambda: webdriver.ActionChains(driver, duration=0)  # moves the pointer at once

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        """Return the texts of the visible elements that match a selector."""
        script = """
            const found = [...document.querySelectorAll(arguments[0])].filter((element) => element.checkVisibility());
            return found.map((element) => element.innerText.trim())"""
        return self.driver.execute_script(script, selector)

    def values(self, selector):
        """Return the unrounded values of the elements that match a selector, None for an element without a value."""
        script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.dataset.value ?? null)"
        return self.driver.execute_script(script, selector)

    def load(self, path):
        self.driver.get("about:blank")  # a change of the fragment alone would not load the page again
        self.driver.get(path.as_uri())

    def open(self, nodule_id):
        self.find(f"#rows a[href='#nodule/{nodule_id}']").click()
        self.wait_for(nodule_id)

    def wait_for(self, nodule_id):
        from selenium.webdriver.support.wait import WebDriverWait

        name = "#viewer:has(#images[aria-busy='false']) #viewer-name"
        WebDriverWait(self.driver, 30, poll_frequency=0.02).until(lambda driver: self.texts(name) == [nodule_id])

    def shown(self, plane):
        """Return the pixels of a plane's canvas as a string."""
        script = "return document.querySelector(`[data-plane=${arguments[0]}] canvas`).toDataURL()"
        return self.driver.execute_script(script, plane)

    def grey(self, plane, x, y):
        """Return the grey value of a canvas at the fractions x and y of its width and height."""
        script = """
            const canvas = document.querySelector(`[data-plane=${arguments[0]}] canvas`);
            const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            const [x, y] = [arguments[1] * canvas.width, arguments[2] * canvas.height].map(Math.floor);
            pixel.drawImage(canvas, -x, -y);
            return pixel.getImageData(0, 0, 1, 1).data[0]"""
        return self.driver.execute_script(script, plane, x, y)

    def slices(self):
        """Return the numbers, from 1, of the axial, coronal and sagittal slices that are shown."""
        script = "return [...document.querySelectorAll('.plane canvas')].map((canvas) => Number(canvas.ariaValueNow))"
        return self.driver.execute_script(script)

    def click(self, element, x=0.5, y=0.5):
        """Click at the fractions x and y of an element's width and height."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        box = element.rect
        offset = [round((x - 0.5) * box["width"]), round((y - 0.5) * box["height"])]
        self._actions().move_to_element_with_offset(element, *offset).click().perform()

    def wheel(self, element, pixels):
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

        self._actions().scroll_from_origin(ScrollOrigin.from_element(element), 0, pixels).perform()

    def drag(self, element, across, down, button=0, shift=False):
        """Press a mouse button (0 left, 2 right) in the middle of an element, move by pixels, and release it."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder

        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        actions = ActionBuilder(self.driver, duration=0)
        if shift:
            actions.key_action.key_down(self.keys.SHIFT)
            actions.pointer_action.pause()
        pointer = actions.pointer_action.move_to(element)
        pointer.pointer_down(button)
        pointer.move_by(across, down)
        pointer.pointer_up(button)
        actions.perform()
        actions.clear_actions()

    def press(self, *pressed):
        self._actions().send_keys(*pressed).perform()

    def empty(self, field):
        field.send_keys(self.keys.CONTROL, "a", self.keys.NULL, self.keys.DELETE)

    def tab_to(self, selector):
        """Press Tab until an element has the focus. Assert that every focused element on the way shows an outline."""
        script = """
            const { activeElement: focused } = document;
            const outline = getComputedStyle(focused).outlineStyle;
            return [focused.matches(arguments[0]), outline !== "none" || focused.outerHTML]"""
        for _ in range(60):
            self.press(self.keys.TAB)
            found, visible = self.driver.execute_script(script, selector)
            assert visible is True, visible
            if found:
                return
        raise AssertionError(f"{selector} cannot be reached with the Tab key")

    def emulate(self, width=1280, height=900, scheme="light", media="screen"):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features, "media": media})

    def count_of_printed_pages(self, width_mm, height_mm):
        """Print the page as a PDF on paper of a size, with the margins of its style sheet, and count the sheets."""
        paper = {"paperWidth": width_mm / 25.4, "paperHeight": height_mm / 25.4}
        data = base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", paper)["data"])
        return len(re.findall(rb"/Type\s*/Page\b", data))
