"All pages of the site in a browser without network: what they load lies beside them."
import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver import Keys

from .pages import Page

NOTEBOOKS = Path(__file__).parents[2]/'nbs'
SCREENSHOT_PAGES = {'home': 'index', 'api': '01_losses', 'tutorial': 'tutorials/tuning',
                    'formulas': 'networks/05_conversions'}
# formulas that are not rendered or have no size; TeX outside code; numbers that are not 1, 2, ...;
# fonts of KaTeX that did not load
FORMULA_FAULTS = r"""
    const found = [], size = e => e.getBoundingClientRect()
    const isHidden = e => !e.checkVisibility()
    for (const formula of document.querySelectorAll('.math')) {
        const drawn = formula.querySelector('.katex-html')
        if (!drawn) found.push('not rendered: ' + formula.textContent)
        else if (!isHidden(formula) && !(size(drawn).width > 0 && size(drawn).height > 0))
            found.push('without size: ' + formula.textContent)
    }
    for (const error of document.querySelectorAll('.katex-error')) found.push(error.title)
    const rest = document.body.cloneNode(true)
    for (const e of rest.querySelectorAll('.katex, pre, code, script, style')) e.remove()
    const tex = /\$\$|\\[([]|\\[a-zA-Z]{2,}/.exec(rest.textContent)
    if (tex) found.push('TeX: ' + rest.textContent.slice(tex.index - 20, tex.index + 60))
    const numbers = [...document.querySelectorAll('.katex-html .tag')]
        .map(e => e.textContent.trim())
    numbers.forEach((n, k) => { if (n !== `(${k + 1})`) found.push(`number ${n} at ${k + 1}`) })
    const fonts = [...document.fonts].filter(f => f.family.startsWith('KaTeX'))
    if (fonts.some(f => f.status === 'error')) found.push('a font of KaTeX failed')
    if (document.querySelector('.katex') && !fonts.some(f => f.status === 'loaded'))
        found.push('no font of KaTeX')
    return found
"""


class Handler(SimpleHTTPRequestHandler):
    "Handler that keeps the requests which failed."
    failed = []

    def log_message(self, *args): pass

    def send_error(self, code, *args, **kwargs):
        self.failed.append((code, self.path))
        super().send_error(code, *args, **kwargs)


@pytest.fixture(scope='module')
def address(driver, site):
    "Serve the site locally; the browser reaches no other server."
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.fixture
def page(driver): return Page(driver)


def open_page(page, address, name, width=1280, scheme='light'):
    page.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {
        'features': [{'name': 'prefers-color-scheme', 'value': scheme}]})
    page.go(f'{address}/{name}.html', width)
    page.wait(lambda: page.driver.execute_script('return document.readyState') == 'complete', name)


def requests(page):
    "Return the addresses that the current page requested, also those that failed."
    return page.driver.execute_script(
        'return performance.getEntriesByType("resource").map(entry => entry.name)')


def formula_faults(page):
    "Return what is wrong with the formulas of the current page, once its fonts are loaded."
    page.driver.execute_async_script('document.fonts.ready.then(() => arguments[0]())')
    return page.driver.execute_script(FORMULA_FAULTS)


def test_every_page_renders_without_an_error(page, address, site):
    Handler.failed.clear()
    formulas = 0
    for path in sorted(site.rglob('*.html')):
        name = path.relative_to(site).with_suffix('').as_posix()
        open_page(page, address, name)
        assert formula_faults(page) == [], name
        formulas += len(page.find('.math'))
        assert 'sparse_ae' in page.element('#quarto-sidebar').text, name
        loaded = page.driver.execute_script(
            'return [...document.images].every(e => e.complete && e.naturalWidth > 0)')
        assert loaded, f'pictures on {name}'
        if (NOTEBOOKS/name).with_suffix('.ipynb').exists():
            assert 'Binder' in page.element('.run-this-page').text, name
        foreign = [a for a in requests(page) if not a.startswith((f'{address}/', 'data:'))]
        assert foreign == [] and Handler.failed == [] and page.errors() == [], name
    assert formulas > 500


SPOILT = {   # what happens to a page: the fault that must be seen
    'document.querySelector(".math").textContent = "\\\\(x\\\\)"': 'not rendered',
    'document.querySelector(".math .katex").style.display = "none"': 'without size',
    'document.querySelector("main p").append("$$x$$")': 'TeX: ',
    'document.querySelector("main p").append("a \\\\frac12")': 'TeX: ',
    'document.querySelector(".tag").textContent = "(7)"': 'number (7) at 1'}


@pytest.mark.parametrize('script', SPOILT)
def test_a_spoilt_formula_is_noticed(script, page, address):
    open_page(page, address, '01_losses')
    page.driver.execute_script(script)
    assert any(SPOILT[script] in fault for fault in formula_faults(page))


def test_a_request_to_another_server_is_noticed(page, address):
    open_page(page, address, 'index')
    page.driver.execute_async_script(
        'const done = arguments[0]; fetch("https://example.org/x").catch(() => done())')
    assert 'https://example.org/x' in requests(page) and page.errors() != []


def test_formulas_of_a_page_opened_as_a_file(page, site):
    page.go((site/'tutorials'/'methods.html').as_uri(), 1280)
    page.wait(lambda: page.find('.katex'), 'formulas')
    assert formula_faults(page) == []


def test_no_page_is_wider_than_a_phone(page, address, site):
    for path in sorted(site.rglob('*.html')):
        name = path.relative_to(site).with_suffix('').as_posix()
        open_page(page, address, name, 390)
        wide = page.driver.execute_script(
            'return document.documentElement.scrollWidth <= 390 ? [] : [...document.querySelectorAll('
            '"main *")].filter(e => e.getBoundingClientRect().right > 390).map(e => e.outerHTML)')
        if wide: pytest.fail(f'wider than a phone: {name}: ' + '; '.join(e[:150] for e in wide[:5]))


def test_search_leads_to_a_page(page, address):
    open_page(page, address, 'index')
    box = page.element('.smalldocs-search input')
    box.send_keys('hoyer projection')
    found = page.element('.search-result')
    assert 'sparseness' in page.element('.smalldocs-search-results').text
    box.send_keys(Keys.ARROW_DOWN)
    found.click()
    page.wait(lambda: 'index.html' not in page.driver.current_url, 'another page')
    assert page.errors() == []


def test_theme_switch(page, address):
    dark = lambda: page.driver.execute_script(
        'return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).every(n => n < 80)')
    for scheme in ('light', 'dark'):
        open_page(page, address, 'index', scheme=scheme)
        page.driver.execute_script('localStorage.clear()')
        open_page(page, address, 'index', scheme=scheme)
        assert dark() == (scheme == 'dark')
        page.element('.quarto-color-scheme-toggle').click()
        page.wait(lambda: dark() == (scheme == 'light'), 'the other theme')
        page.driver.execute_script('localStorage.clear()')


@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('what', SCREENSHOT_PAGES)
def test_screenshots(what, width, page, address):
    "Screenshots for visual inspection."
    for scheme in ('light', 'dark'):
        open_page(page, address, SCREENSHOT_PAGES[what], width, scheme)
        if tags := page.find('.tag'): page.show(tags[0])
        page.screenshot(f'site_{what}_{width}_{scheme}')
