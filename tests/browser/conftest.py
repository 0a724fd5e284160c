"Local JupyterLab, Voila and Chromium. Without a browser the tests are skipped."
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from .pages import Notebook, Page

FLAGS = ['headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage', 'disable-quic',
         'no-first-run', 'disable-background-networking', 'disable-component-update',
         'disable-sync',
         'host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1']  # no network
TOKEN = 'browser-tests'
THEMES = dict(light='JupyterLab Light', dark='JupyterLab Dark')
# a cold start on a busy machine
START_SECONDS = 120


@pytest.fixture(scope='session')
def driver(tmp_path_factory):
    "Headless Chromium."
    browsers = [shutil.which(name) for name in ('chromium', 'chromium-browser', 'google-chrome')]
    browser, chromedriver = next(filter(None, browsers), None), shutil.which('chromedriver')
    if not (browser and chromedriver):
        pytest.skip('no browser: apt-get install chromium chromium-driver')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that fixtures are torn down
    options = ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS: options.add_argument(f'--{flag}')
    options.add_argument(f'--user-data-dir={tmp_path_factory.mktemp("chromium")}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = Chrome(options, Service(chromedriver))
    yield driver
    driver.quit()


@contextmanager
def running(command, home, path, headers=None):
    "Start a server, and yield its address when `path` responds; it writes only into `home`."
    home.mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    folders = {name: str(home/name.lower()) for name in (
        'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR',
        'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')}
    log, address = home/'log.txt', f'http://127.0.0.1:{port}'
    with open(log, 'w') as f:
        server = subprocess.Popen([sys.executable, '-m', *command, f'--port={port}'],
                                  env={**os.environ, **folders}, stdout=f, stderr=f,
                                  start_new_session=True)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                urlopen(Request(address + path, headers=headers or {})).close()
                break
            except URLError:
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f'{command[0]} did not start:\n{log.read_text()}') from None
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()  # the server stops its kernels
        try: server.wait(20)
        except subprocess.TimeoutExpired: os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Lab:
    "A running JupyterLab. A test copies its notebooks into `root`."

    def __init__(self, driver, address, root, settings):
        self.driver, self.address, self.root, self.settings = driver, address, root, settings

    def set(self, extension, name, **values):
        "Write user settings, which the next page loads."
        path = self.settings/'@jupyterlab'/f'{extension}-extension'/f'{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def api(self, path, method='GET'):
        request = Request(f'{self.address}/api/{path}', method=method,
                          headers={'Authorization': f'token {TOKEN}'})
        with urlopen(request) as r: return json.loads(r.read() or 'null')

    def open(self, path, theme='light', width=1280):
        "Open a notebook of `root`, in a fresh workspace, and wait for its kernel."
        self.set('apputils', 'themes', theme=THEMES[theme])
        notebook = Notebook(self.driver)
        notebook.go(f'{self.address}/doc/tree/{path}?token={TOKEN}&reset', width)
        # the page shows an idle kernel also before it requests one
        notebook.wait(lambda: self.connected(path), f'a kernel for {path}', START_SECONDS)
        notebook.wait_idle()
        return notebook

    def connected(self, path):
        "Return whether the page of a notebook is connected to a kernel."
        return any(s['path'] == path and s['kernel']['connections'] for s in self.api('sessions'))

    def end_kernels(self):
        for kernel in self.api('kernels'): self.api(f'kernels/{kernel["id"]}', 'DELETE')


class Voila:
    "A running Voila. A test copies its notebooks into `root`."

    def __init__(self, driver, address, root):
        self.driver, self.address, self.root = driver, address, root

    def open(self, path, theme='light', width=1280):
        "Open a notebook of `root`; its outputs may appear later."
        page = Page(self.driver)
        page.go(f'{self.address}/voila/render/{path}?theme={theme}', width)
        return page


@pytest.fixture(scope='session')
def lab_server(driver, tmp_path_factory):
    home = tmp_path_factory.mktemp('lab')
    root = home/'root'
    root.mkdir()
    command = ['jupyterlab', '--allow-root', '--no-browser', '--ServerApp.ip=127.0.0.1',
               '--ServerApp.port_retries=0', f'--ServerApp.root_dir={root}',
               f'--IdentityProvider.token={TOKEN}']
    with running(command, home, f'/lab?token={TOKEN}') as address:
        lab = Lab(driver, address, root, home/'jupyterlab_settings_dir')
        lab.set('apputils', 'notification', fetchNews='false', checkForUpdates=False)
        yield lab


@pytest.fixture
def lab(lab_server):
    "JupyterLab without running kernels; `lab.root` is shared by the tests."
    yield lab_server
    lab_server.end_kernels()


@pytest.fixture(scope='session')
def voila(driver, tmp_path_factory):
    home = tmp_path_factory.mktemp('voila')
    root = home/'root'
    root.mkdir()
    command = ['voila', str(root), '--no-browser', '--Voila.ip=127.0.0.1',
               '--Voila.port_retries=0', '--show_tracebacks=True']
    with running(command, home, '/') as address:
        yield Voila(driver, address, root)
