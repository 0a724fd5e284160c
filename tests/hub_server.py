"""A stand-in for the Hugging Face Hub: repositories in memory behind the part of its HTTP interface
that `huggingface_hub` uses to upload and download models.

Small files are stored as they are, weights as LFS objects, which are downloaded from another origin
(`localhost` instead of `127.0.0.1`) without the token, as from the content network of the Hub."""
import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = '.safetensors', '.pt', '.npz'


class Refused(Exception):
    "An answer with an error status."
    def __init__(self, status, code='', message='', **headers):
        super().__init__(message)
        self.status, self.headers = status, {'X-Error-Message': message or code, **headers}
        if code: self.headers['X-Error-Code'] = code


@dataclass
class Repo:
    private:bool = False
    gated:bool = False
    branches:dict = field(default_factory=dict)    # name -> commit
    commits:dict = field(default_factory=dict)     # commit -> {path: bytes}
    messages:dict = field(default_factory=dict)    # commit -> message

    def commit(self, branch, files, message='Change files'):
        "Add or replace files (`None` deletes one) in one commit; return its hash."
        parent = self.branches.get(branch)
        tree = {**self.commits.get(parent, {}), **files}
        tree = {path: content for path, content in tree.items() if content is not None}
        text = f'{parent}{branch}{message}{len(self.commits)}{sorted(tree)}'
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = tree, message, oid
        return oid

    def resolve(self, revision):
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return oid


def git_oid(content):
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Hub(ThreadingHTTPServer):
    "The server; use it as a context manager."
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.repos, self.lfs, self.log, self.hooks = {}, {}, [], []
        self.tokens = {'hf_owner': ('owner', True), 'hf_reader': ('owner', False)}
        self.connections = []
        self.damage = {}     # path in a repository -> function of its content
        self.lock = threading.RLock()

    @property
    def url(self): return f'http://127.0.0.1:{self.server_port}'

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()
        for connection in self.connections:      # those that are kept alive, too
            with contextlib.suppress(OSError): connection.shutdown(socket.SHUT_RDWR)

    def add(self, repo_id, files, **options):
        "Create a repository with one commit; return its hash."
        self.repos[repo_id] = Repo(**options)
        return self.repos[repo_id].commit('main', {'.gitattributes': b'', **files})

    def handle_error(self, request, address): pass     # a client that has closed the connection


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *args): pass

    def answer(self, value=None, status=200, content=None, **headers):
        if content is None: content = b'' if value is None else json.dumps(value).encode()
        if value is not None: headers['Content-Type'] = 'application/json'
        self.send_response(status)
        for name, text in {'Content-Length': len(content), **headers}.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(content)

    def handle_request(self):
        hub, parts = self.server, urlsplit(self.path)
        length = int(self.headers.get('Content-Length') or 0)
        self.body = self.rfile.read(length)
        path, self.query = parts.path, parse_qs(parts.query)
        with hub.lock: hub.log.append((self.command, unquote(path)))
        try:
            for hook in list(hub.hooks): hook(self.command, path)
            for method, pattern, function in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    with hub.lock: return function(self, *map(unquote, match.groups()))
            raise Refused(404, message=f'no route for {self.command} {path}')
        except Refused as error:
            self.answer({'error': str(error)}, error.status, **error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    # who asks
    def user(self):
        "Return name and right to write; `None` without a token."
        header = self.headers.get('Authorization')
        if header is None: return None
        known = self.server.tokens.get(header.removeprefix('Bearer '))
        if known: return known
        raise Refused(401, message='Invalid credentials in Authorization header')

    def repo(self, repo_id, write=False, content=False):
        user, repo = self.user(), self.server.repos.get(repo_id)
        owns = user is not None and user[0] == repo_id.split('/')[0]
        if repo is None or repo.private and not owns:
            raise Refused(404 if user else 401, 'RepoNotFound', 'Repository not found')
        if content and repo.gated and not owns:
            raise Refused(403 if user else 401, 'GatedRepo', f'Access to model {repo_id} is '
                          'restricted and you are not in the authorized list.')
        if write and not (owns and user[1]):
            raise Refused(403 if user else 401, message='You have no right to write')
        return repo

    # uploads
    def create(self):
        user, wanted = self.user(), json.loads(self.body)
        namespace = wanted.get('organization') or (user and user[0])
        if user is None: raise Refused(401, message='Log in to create a repository')
        if user != (namespace, True): raise Refused(403, message="You don't have the rights to "
                                                    f'create a model under {namespace}')
        repo_id = f"{namespace}/{wanted['name']}"
        url = f'{self.server.url}/{repo_id}'
        if repo_id in self.server.repos: return self.answer({'url': url}, 409)
        private = wanted.get('visibility') == 'private' or bool(wanted.get('private'))
        self.server.add(repo_id, {}, private=private)
        self.answer({'url': url, 'name': repo_id})

    def validate_yaml(self):
        text = json.loads(self.body)['content']
        match = re.match(r'---\n(.*?)\n---\n', text, re.S)
        try: values = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error: return self.answer(
            {'errors': [{'message': str(error)}], 'warnings': []}, 400)
        warnings = [] if values else [{'message': 'empty or missing yaml metadata in repo card'}]
        self.answer({'errors': [], 'warnings': warnings})

    def branch(self, repo_id, name):
        repo = self.repo(repo_id, write=True)
        if name in repo.branches: raise Refused(409, message='Reference already exists')
        start = (json.loads(self.body or b'{}') or {}).get('startingPoint', 'main')
        repo.branches[name] = repo.resolve(start)
        self.answer({})

    def preupload(self, repo_id, revision):
        repo = self.repo(repo_id, write=True)
        tree = repo.commits[repo.resolve(revision)]
        answers = []
        for file in json.loads(self.body)['files']:
            is_lfs, there = file['path'].endswith(LFS_SUFFIXES), tree.get(file['path'])
            oid = None if there is None else (sha256 if is_lfs else git_oid)(there)
            answers.append({'path': file['path'], 'shouldIgnore': False, 'oid': oid,
                            'uploadMode': 'lfs' if is_lfs else 'regular'})
        self.answer({'files': answers})

    def lfs_batch(self, repo_id):
        self.repo(repo_id, write=True)
        objects = []
        for wanted in json.loads(self.body)['objects']:
            if wanted['oid'] not in self.server.lfs:
                href = f"{self.server.url}/lfs/{wanted['oid']}"
                wanted['actions'] = {'upload': {'href': href}, 'verify': {'href': f'{href}/verify'}}
            objects.append(wanted)
        self.answer({'transfer': 'basic', 'objects': objects})

    def lfs_put(self, oid):
        if 'Transfer-Encoding' in self.headers: self.body = self.read_chunks()
        if sha256(self.body) != oid: raise Refused(400, message='hash mismatch')
        self.server.lfs[oid] = self.body
        self.answer()

    def read_chunks(self):
        content = b''
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def lfs_verify(self, oid):
        wanted = json.loads(self.body)
        if len(self.server.lfs.get(oid, b'')) != wanted['size']:
            raise Refused(404, message='no such object')
        self.answer({})

    def commit(self, repo_id, revision):
        repo = self.repo(repo_id, write=True)
        if revision not in repo.branches: repo.resolve('no branch ' + revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line['value'] for line in lines if line['key'] == 'header')
        if header.get('parentCommit') not in (None, repo.branches[revision]):
            raise Refused(412, message='A commit has happened since. Please refresh and try again.')
        files = {line['value']['path']: base64.b64decode(line['value']['content'])
                 for line in lines if line['key'] == 'file'}
        files |= {line['value']['path']: self.server.lfs[line['value']['oid']]
                  for line in lines if line['key'] == 'lfsFile'}
        oid = repo.commit(revision, files, header['summary'])
        url = f'{self.server.url}/{repo_id}/commit/{oid}'
        self.answer({'success': True, 'commitOid': oid, 'commitUrl': url})

    # downloads
    def info(self, repo_id, revision='main'):
        repo = self.repo(repo_id)
        oid = repo.resolve(revision)
        self.answer({'_id': oid[:24], 'id': repo_id, 'modelId': repo_id, 'sha': oid, 'tags': [],
                     'private': repo.private, 'gated': repo.gated and 'manual',
                     'downloads': 0, 'likes': 0, 'author': repo_id.split('/')[0],
                     'siblings': [{'rfilename': path} for path in sorted(repo.commits[oid])]})

    def tree(self, repo_id, revision, folder=''):
        repo = self.repo(repo_id)
        tree = repo.commits[repo.resolve(revision)]
        entries = []
        for path, content in sorted(tree.items()):
            if folder and not path.startswith(folder + '/'): continue
            entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': git_oid(content)}
            if path.endswith(LFS_SUFFIXES):
                entry['lfs'] = {'oid': sha256(content), 'size': len(content), 'pointerSize': 130}
            entries.append(entry)
        start = int(self.query.get('cursor', ['0'])[0])      # pages, as on the Hub, but short
        headers = {}
        if start + 50 < len(entries):
            path = urlsplit(self.path).path
            after = f'{self.server.url}{path}?recursive=true&cursor={start + 50}'
            headers['Link'] = f'<{after}>; rel="next"'
        self.answer(entries[start:start + 50], **headers)

    def resolve(self, repo_id, revision, path):
        repo = self.repo(repo_id, content=True)
        oid = repo.resolve(revision)
        commit = {'X-Repo-Commit': oid}
        if path not in repo.commits[oid]:
            raise Refused(404, 'EntryNotFound', 'Entry not found', **commit)
        content = repo.commits[oid][path]
        if not path.endswith(LFS_SUFFIXES):
            return self.content(path, content, ETag=f'"{git_oid(content)}"', **commit)
        where = f'http://localhost:{self.server.server_port}/cdn/{sha256(content)}/{path}'
        self.server.lfs[sha256(content)] = content
        self.answer(status=302, Location=where, **commit, **{
            'X-Linked-Etag': f'"{sha256(content)}"', 'X-Linked-Size': len(content)})

    def cdn(self, oid, path):
        if 'Authorization' in self.headers: raise Refused(400, message='the token was sent here')
        self.content(path, self.server.lfs[oid], ETag=f'"{oid}"')

    def content(self, path, content, **headers):
        "Answer with the whole of a file, or with the range that is asked for."
        if self.command == 'GET' and path in self.server.damage:
            content = self.server.damage[path](content)
        first = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if first is None: return self.answer(content=content, **headers)
        rest, total = content[int(first[1]):], len(content)
        headers['Content-Range'] = f'bytes {first[1]}-{total - 1}/{total}'
        self.answer(status=206, content=rest, **headers)


ID = '([^/]+/[^/]+)'
ROUTES = [
    ('POST', '/api/repos/create', Handler.create),
    ('POST', '/api/validate-yaml', Handler.validate_yaml),
    ('POST', f'/api/models/{ID}/branch/([^/]+)', Handler.branch),
    ('POST', f'/api/models/{ID}/preupload/([^/]+)', Handler.preupload),
    ('POST', f'/api/models/{ID}/commit/([^/]+)', Handler.commit),
    ('POST', f'/{ID}\\.git/info/lfs/objects/batch', Handler.lfs_batch),
    ('PUT', '/lfs/([0-9a-f]{64})', Handler.lfs_put),
    ('POST', '/lfs/([0-9a-f]{64})/verify', Handler.lfs_verify),
    ('GET', f'/api/models/{ID}', Handler.info),
    ('GET', f'/api/models/{ID}/revision/([^/]+)', Handler.info),
    ('GET', f'/api/models/{ID}/tree/([^/]+)', Handler.tree),
    ('GET', f'/api/models/{ID}/tree/([^/]+)/(.+)', Handler.tree),
    ('GET HEAD', f'/{ID}/resolve/([^/]+)/(.+)', Handler.resolve),
    ('GET HEAD', '/cdn/([0-9a-f]{64})/(.+)', Handler.cdn)]
