"All pages of the site in a browser; formulas are rendered by the local KaTeX."
import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver import Keys

from .pages import Page

NOTEBOOKS = Path(__file__).parents[2]/'nbs'
KATEX = Path('/usr/share/javascript/katex')   # Debian's libjs-katex
KATEX_URL = 'https://cdn.jsdelivr.net/npm/katex@0.16.11/dist'
SCREENSHOT_PAGES = {'home': 'index', 'api': '01_losses', 'tutorial': 'tutorials/tuning'}


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def address(driver, site, tmp_path_factory):
    "Serve the site locally, together with KaTeX."
    if not KATEX.is_dir(): pytest.skip('no KaTeX: apt-get install libjs-katex')
    root = tmp_path_factory.mktemp('site')/'root'
    shutil.copytree(site, root)
    shutil.copytree(KATEX, root/'katex')
    shutil.copy(KATEX/'contrib'/'auto-render.js', root/'katex'/'contrib'/'auto-render.min.js')
    for page in root.rglob('*.html'):
        page.write_text(page.read_text().replace(KATEX_URL, '/katex'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=root))
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


def test_every_page_renders_without_an_error(page, address, site):
    for path in sorted(site.rglob('*.html')):
        name = path.relative_to(site).with_suffix('').as_posix()
        open_page(page, address, name)
        drawn = lambda: page.driver.execute_script(
            'return [...document.querySelectorAll("main .math")].every(e => e.querySelector(".katex"))')
        page.wait(drawn, f'formulas on {name}')
        assert page.find('.katex-error') == [], name
        assert 'sparse_ae' in page.element('#quarto-sidebar').text, name
        loaded = page.driver.execute_script(
            'return [...document.images].every(e => e.complete && e.naturalWidth > 0)')
        assert loaded, f'pictures on {name}'
        if (NOTEBOOKS/name).with_suffix('.ipynb').exists():
            assert 'Binder' in page.element('.run-this-page').text, name
        assert page.errors() == [], name


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
        page.wait(lambda: page.find('main .math') == [] or page.find('.katex'), 'formulas')
        page.screenshot(f'site_{what}_{width}_{scheme}')
