"Pages with widgets, and notebooks in JupyterLab, operated by mouse and keyboard."
import base64
import os
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from selenium.common import WebDriverException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

SCREENSHOTS = Path(os.environ.get('SCREENSHOTS', Path(__file__).parent/'screenshots'))
HARMLESS = (
    'cdn.jsdelivr.net/npm/@fortawesome/',  # icons of Voila, which the tests cannot load
)
IDLE = '.jp-Notebook-ExecutionIndicator[data-status=idle]'

# the bytes of an image of any scheme (http:, data:, blob:); null while it is being replaced
FETCH = '''
const [img, done] = arguments
fetch(img.src).then(r => r.blob()).then(blob => {
    const reader = new FileReader()
    reader.onload = () => done(reader.result.split(',')[1])
    reader.readAsDataURL(blob)
}).catch(() => done(null))
'''


class Page:
    """Jupyter cells and widgets, in JupyterLab or Voila.

    Cells count from 0; `cell=None` is the whole page. A widget is the first one of its kind, or
    the first with `label` as its description. All methods wait for the elements that they use.
    """

    def __init__(self, driver):
        self.driver = driver

    def wait(self, until, what, seconds=30):
        "Return the first true value of `until()`; a removed element counts as false."
        end = time.monotonic() + seconds
        while True:
            try:
                if result := until(): return result
                error = None
            except (WebDriverException, LookupError) as e: error = e
            if time.monotonic() > end:
                self.screenshot('timeout')
                page = self.driver.execute_script('return document.body.innerText')
                raise TimeoutError(f'waited {seconds} s for {what}, on a page with\n{page[-3000:]}'
                                   ) from error
            time.sleep(0.05)

    def find(self, css, cell=None):
        "Return the current elements."
        part = self.driver
        if cell is not None: part = part.find_elements(By.CSS_SELECTOR, '.jp-Cell')[cell]
        return part.find_elements(By.CSS_SELECTOR, css)

    def element(self, css, cell=None, text=''):
        "Return the first element that contains this text."
        return self.wait(
            lambda: next((e for e in self.find(css, cell) if text in text_of(e)), None),
            f'{css} {text!r} in {place(cell)}')

    def widget(self, kind, css, cell=None, label=''):
        "Return the element `css` of the first widget of a kind."
        def part():
            for widget in self.find(f'.widget-{kind}', cell):
                within = lambda css: widget.find_element(By.CSS_SELECTOR, css)
                if label in ('', text_of(within('.widget-label'))): return within(css)
        return self.wait(part, f'{kind} {label!r} in {place(cell)}')

    def output(self, cell):
        "Return the current text of the outputs; it may appear after the number of the cell."
        return '\n'.join(text_of(e) for e in self.find('.jp-OutputArea-output', cell))

    def says(self, text, cell, seconds=30):
        "Wait for a text in the outputs of a cell."
        self.wait(lambda: text in self.output(cell), f'{text!r} in cell {cell}', seconds)

    def picture(self, cell=None, index=0):
        "Return the bytes of an image, of an `Image` widget or of an output."
        fetch = lambda: self.driver.execute_async_script(FETCH, self.find('img', cell)[index])
        return base64.b64decode(self.wait(fetch, f'picture {index} in {place(cell)}'))

    def new_picture(self, before, cell=None, index=0, seconds=30):
        "Return the bytes of an image that differs from `before` and no longer changes."
        def changed():
            now = self.picture(cell, index)
            if now == before: return None
            time.sleep(0.3)
            return now if now == self.picture(cell, index) else None
        return self.wait(changed, f'a change of picture {index} in {place(cell)}', seconds)

    def move_slider(self, steps, cell=None, label=''):
        "Press arrow keys on a slider: right, or left if `steps < 0`."
        handle = self.widget('slider', '.noUi-handle', cell, label)
        self.show(handle)
        handle.send_keys((Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT)*abs(steps))

    def readout(self, cell=None, label=''):
        "Return the displayed value of a slider."
        return text_of(self.widget('slider', '.widget-readout', cell, label))

    def click(self, text, cell=None):
        "Click the first button that contains this text."
        button = self.element('button.jupyter-button', cell, text)
        self.show(button)
        button.click()

    def choose(self, option, cell=None, label=''):
        "Select an option of a dropdown."
        select = self.widget('dropdown', 'select', cell, label)
        self.show(select)
        Select(select).select_by_visible_text(option)

    def type(self, text, cell=None, label=''):
        "Replace the content of a text or number box, and leave the box."
        box = self.widget('text', 'input', cell, label)
        self.show(box)
        box.send_keys(Keys.CONTROL + 'a', Keys.NULL, text, Keys.TAB)

    def show(self, element):
        "Scroll to an element."
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)

    def go(self, address, width):
        "Discard the last page and its errors, and open an address."
        self.driver.get('about:blank')
        self.errors()
        self.resize(width)
        self.driver.get(address)

    def resize(self, width, height=1000):
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(
            width=width, height=height, deviceScaleFactor=1, mobile=False))

    def errors(self):
        "Return the errors in the console of the browser since the last call."
        return [e['message'] for e in self.driver.get_log('browser') if e['level'] == 'SEVERE'
                and not any(h in e['message'] for h in HARMLESS)]

    def screenshot(self, name):
        "Save the window as `SCREENSHOTS/name.png`."
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SCREENSHOTS/f'{name}.png'))


class Notebook(Page):
    "An open notebook in JupyterLab."

    def menu(self, *names):
        "Select an item of the menu bar: `menu('Run', 'Run All Cells')`."
        self.element('#jp-MainMenu .lm-MenuBar-item', text=names[0]).click()
        for name in names[1:]:
            self.wait(lambda: self.menu_item(name), f'{name} in the menu').click()

    def menu_item(self, name):
        labels = self.find('.lm-Menu-item .lm-Menu-itemLabel')
        return next((e for e in labels if text_of(e) == name), None)

    def select(self, cell):
        "Select a cell, in command mode."
        prompt = self.element('.jp-InputPrompt', cell)
        self.show(prompt)
        prompt.click()

    def run(self, cell, seconds=60):
        "Press Shift-Enter, and wait until the kernel is idle."
        self.start(cell)
        self.wait_idle(seconds)

    def start(self, cell):
        "Press Shift-Enter."
        self.select(cell)
        keys = ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER)
        keys.key_up(Keys.SHIFT).perform()

    def run_all(self, seconds=120):
        self.menu('Run', 'Run All Cells')
        self.wait_idle(seconds)

    def clear_outputs(self, cell):
        self.select(cell)
        self.menu('Edit', 'Clear Cell Output')

    def restart(self, seconds=60):
        "Restart the kernel; outputs are kept."
        self.menu('Kernel', 'Restart Kernel…')
        self.element('.jp-Dialog button.jp-mod-accept').click()
        self.wait(lambda: not self.find(IDLE), 'a restarting kernel')
        self.wait_idle(seconds)

    def wait_idle(self, seconds=60):
        "Wait until the kernel is idle and no cell is queued."
        self.wait(lambda: self.find(IDLE)
                  and not any('*' in text_of(e) for e in self.find('.jp-InputPrompt')),
                  'an idle kernel', seconds)


def write_notebook(path, title, *sources):
    "Write a notebook with a title, which is cell 0, and code cells."
    nb = new_notebook(cells=[new_markdown_cell(f'# {title}'),
                             *(new_code_cell(s.strip()) for s in sources)],
                      metadata=dict(kernelspec=dict(name='python3', display_name='Python 3')))
    nbformat.write(nb, path)


def place(cell): return 'the page' if cell is None else f'cell {cell}'


def text_of(element):
    "Return the text of an element, also outside the viewport."
    return element.get_property('textContent')
