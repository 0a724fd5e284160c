"Exported pages with hostile content in a browser: no request, nothing injected, all functions."
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import hostile
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.ui import Select

from sparse_ae.cli import _REPORT_FIGURES, report_html
from sparse_ae.eval_viz import plot_sparse_training_history
from test_trust import hostile_explorer

from .pages import Page


class Handler(BaseHTTPRequestHandler):
    "Handler that keeps the paths of all requests."
    seen = []

    def do_GET(self):
        self.seen.append(self.path)
        self.send_response(200)
        self.send_header('Access-Control-Allow-Origin', '*')
        self.end_headers()

    do_POST = do_HEAD = do_GET

    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def server():
    "Address of a server that a page should not reach; its requests are in `Handler.seen`."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.fixture
def page(driver): return Page(driver)


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "The page of an explorer with hostile content, and a report."
    folder = tmp_path_factory.mktemp('<b>&"pages')
    explorer = hostile_explorer(hostile.TEXTS)
    explorer.export_html(folder/'latents.html', hostile.TEXTS[31], latents=10**4, with_map=True)
    history = dict.fromkeys(['train_loss', 'train_recon_loss', 'train_sparsity_loss', 'val_loss',
                             'val_recon_loss', 'val_sparsity_loss'], [1., 0.5])
    plot_sparse_training_history(history | dict(epochs_trained=2), folder/'training_history.png')
    picture = (folder/'training_history.png').read_bytes()
    for name in _REPORT_FIGURES: (folder/name).write_bytes(picture)
    rows = {text: text for text in hostile.TEXTS}
    (folder/'report.html').write_text(report_html(folder, hostile.TEXTS[31], rows, rows),
                                      encoding='utf-8', errors='replace')
    return folder


# how injected markup would reach a server; each line is put into the body of a page
INJECTED = '''
<img src="{0}/img"><link rel="stylesheet" href="{0}/css"><iframe src="{0}/frame"></iframe>
<script>fetch("{0}/fetch"); navigator.sendBeacon("{0}/beacon"); window.hacked = 1</script>
<script src="{0}/script.js"></script><script type="module" src="{0}/module.js"></script>
<style>@import "{0}/import.css"; body {{ background: url("{0}/background") }}</style>
<p style="background: url('{0}/style')">x</p><object data="{0}/object"></object>
<video src="{0}/video"></video><audio src="{0}/audio"></audio><embed src="{0}/embed">
<img src="x" onerror="window.hacked = 1"><svg><image href="{0}/svg"></image></svg>
<form action="{0}/form"><button id="send">send</button></form><link rel="icon" href="{0}/icon">
<script>new Worker(URL.createObjectURL(new Blob(["fetch('{0}/worker')"])))</script>
<script>new WebSocket("{0}/socket".replace("http", "ws"))</script>
'''


@pytest.mark.parametrize('name', ['latents', 'report'])
def test_injected_markup_reaches_no_server(name, page, pages, server, tmp_path):
    text = (pages/f'{name}.html').read_text(encoding='utf-8')
    spoilt = text.replace('</h1>', '</h1>' + INJECTED.format(server), 1)
    start, end = text.index('<meta http-equiv='), text.index('\n<meta name="viewport"')
    unprotected = spoilt.replace(text[start:end], '', 1)
    reached = {}
    for kind, content in dict(protected=spoilt, unprotected=unprotected).items():
        (tmp_path/f'{kind}.html').write_text(content, encoding='utf-8')
        Handler.seen.clear()
        page.go((tmp_path/f'{kind}.html').as_uri(), 800)
        page.wait(lambda: page.find('#send'), 'the page')
        hacked = page.driver.execute_script('return window.hacked')
        page.driver.execute_script('document.querySelector("#send").click()')
        if kind == 'unprotected': page.wait(lambda: '/form?' in Handler.seen, 'the form')
        else: page.driver.execute_async_script('setTimeout(arguments[0], 500)')
        reached[kind] = {path.strip('/?') for path in Handler.seen}, hacked
    page.errors()
    assert reached['protected'] == (set(), None)
    assert reached['unprotected'][1] == 1 and reached['unprotected'][0] >= {
        'img', 'css', 'frame', 'fetch', 'script.js', 'import.css', 'background', 'style', 'form'}


def elements(page, css):
    "Return the kinds of elements in a part of the page."
    return set(page.driver.execute_script(
        'return [...document.querySelectorAll(arguments[0] + " *")].map(e => e.tagName)', css))


def assert_untouched(page):
    state = page.driver.execute_script('''return [window.hacked,
        performance.getEntriesByType("resource").map(e => e.name)
            .filter(name => !name.startsWith("data:"))]''')
    assert state == [None, []] and page.errors() == []


def test_all_functions_of_a_hostile_explorer_page(page, pages):
    page.go((pages/'latents.html').as_uri(), 1280)
    buttons = lambda: page.find('#atoms button')
    heading = lambda: page.element('#latent h1').text
    page.wait(lambda: len(buttons()) == len(hostile.TEXTS), 'all latents')
    # every latent, as by a click
    shown = page.driver.execute_script('''return [...document.querySelectorAll("#atoms button")]
        .map(b => { b.click(); return document.querySelector("#latent h1").textContent })''')
    assert len(set(shown)) == len(hostile.TEXTS)
    allowed = {'H1', 'H2', 'DIV', 'SPAN', 'svg', 'rect', 'text', 'TABLE', 'TR', 'TH', 'TD',
               'BUTTON', 'FIGURE', 'FIGCAPTION'}
    assert elements(page, '#latent') <= allowed and elements(page, '#atoms') == {'BUTTON'}
    assert page.driver.title == hostile.TEXTS[31]
    orders, colours = Select(page.element('#order')), Select(page.find('#color')[0])
    for k in range(len(orders.options)): orders.select_by_index(k)
    orders.select_by_visible_text('score')
    assert buttons()[0].get_attribute('title') == f'latent {len(hostile.TEXTS) - 1}'   # text: ''
    for k in range(len(colours.options)): colours.select_by_index(k)
    assert elements(page, '#legend') == {'SPAN'}
    point = page.find('svg.map circle')[7]
    ActionChains(page.driver).move_to_element(point).click().perform()
    focused = page.driver.switch_to.active_element
    assert heading() == f'Latent {focused.get_attribute("data-latent")}'
    focused.send_keys(Keys.ARROW_RIGHT)
    focused = page.driver.switch_to.active_element
    focused.send_keys(Keys.ENTER)
    assert heading() == f'Latent {focused.get_attribute("data-latent")}'
    page.find('#search')[0].send_keys('onerror')
    assert 0 < len(buttons()) < len(hostile.TEXTS)
    page.screenshot('page_hostile_1280')
    assert_untouched(page)


def test_a_hostile_report(page, pages):
    page.go((pages/'report.html').as_uri(), 1280)
    page.wait(lambda: len(page.find('table')) == 2, 'the tables')
    assert elements(page, 'body') == {'H1', 'H2', 'TABLE', 'TBODY', 'TR', 'TH', 'TD', 'FIGURE',
                                      'IMG', 'FIGCAPTION'}
    assert len(page.find('tr')) == 2*len(hostile.TEXTS)
    assert page.driver.execute_script(
        'return [...document.images].every(e => e.complete && e.naturalWidth > 100)')
    assert page.driver.execute_script(   # the style applies
        'return getComputedStyle(document.querySelector("table")).borderCollapse') == 'collapse'
    page.screenshot('report_hostile_1280')
    assert_untouched(page)


def test_hostile_titles_as_the_browser_reads_them(page, tmp_path):
    "Parsed by the browser: the elements of each page are those of a page with a plain title."
    explorer = hostile_explorer(['a', 'b'])
    texts = []
    for k, title in enumerate(('plain', *hostile.TEXTS)):
        path = explorer.export_html(tmp_path/f'{k}.html', title, k=1)
        texts.append(path.read_text(encoding='utf-8'))
    page.go('about:blank', 800)
    found = page.driver.execute_script('''return arguments[0].map(text => {
        const page = new DOMParser().parseFromString(text, 'text/html')
        return [...page.querySelectorAll('*')].map(e => e.tagName + e.getAttributeNames())
    })''', texts)
    assert all(elements == found[0] for elements in found)
