"""What a person does on the page of `rootlet ui`, step by step, in a headless Chromium."""

import json
import os
import signal
import subprocess
import sys
import time

from browser import Browser

place, name = sys.argv[1:3]
pictures = sys.argv[3] if len(sys.argv) > 3 else None
user = f"{place}/as-user"
kubeconfig = f"{place}/kubeconfig"


def kubectl(*words, **more):
    return subprocess.run([user, f"{place}/kubectl", "--kubeconfig", kubeconfig, *words],
                          check=True, capture_output=True, text=True, **more).stdout


def rootlet(*words):
    return subprocess.run([user, f"{place}/rootlet", *words, "--name", name], check=True, capture_output=True, text=True).stdout


def serve():
    """Starts `rootlet ui`; returns its process and the address that it prints."""
    process = subprocess.Popen([user, f"{place}/rootlet", "ui", "--no-browser", "--name", name],
                               stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if "http://" in line:
            return process, line.strip()
    raise RuntimeError("rootlet ui has ended")


def row(text):
    """A script's expression: the row of the list that begins with `text`."""
    return f"[...document.querySelectorAll('#list .row[data-key]')].find((row) => row.innerText.trim().startsWith({json.dumps(text)}))"


def until(condition, what):
    """Waits until the cluster is as it should be."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"{what}: not in time"
        time.sleep(0.1)


def see(words, where="body"):
    page.until_text(words, where)


def go(path):
    page.js(f"location.hash = '#/{path}'")


def narrow(words):
    """Filters the list; goes to its first row."""
    page.key("/")
    page.type(f"{words}\n")


def agree(question):
    see(question, "dialog")
    page.key("Enter")


def press(label):
    """Presses a button of the details."""
    page.js(f"[...document.querySelectorAll('#detail button')].find((b) => b.innerText === {json.dumps(label)}).click()")


def picture(file):
    if not pictures:
        return
    for theme in ["light", "dark"]:
        page.theme(theme)
        time.sleep(0.15)
        page.picture(f"{pictures}/{file}-{theme}.png")


def strangers_are_kept_out(address):
    origin = address.split("/?")[0]
    if os.getuid() == 0:
        ask = f"import urllib.request; print(urllib.request.urlopen({address!r}).status)"
        other = subprocess.run(["/usr/bin/python3", "-c", ask], user=65534, group=65534, extra_groups=[], capture_output=True, text=True)
        assert "HTTP Error 403" in other.stderr, f"another user comes in: {other}"
    page.open(f"{origin}/api/v1/secrets")
    see("open the address that `rootlet ui` printed")
    page.open(address)
    see("Overview", "#nav")
    assert page.js("location.search") == "" and page.js("document.cookie") == "", "the secret is not for scripts"
    assert page.js("fetch('/api/v1/secrets').then((answer) => answer.status)") == 200
    # A page of another origin, on the same machine: the cookie may go along, and is of no use.
    page.open(origin.replace("127.0.0.1", "localhost") + "/")
    see("open the address that")
    page.open(f"{origin}/")
    see("Overview", "#nav")
    page.errors.clear()


def lists_show_what_there_is():
    see("live", "#link")
    go("pods")
    for pod, status in [("absent", "ErrImageNeverPull"), ("crash", "CrashLoopBackOff"), ("greedy", "Pending"), ("import-", "Completed"), ("web-", "Running"), ("db-0", "Running")]:
        page.until(f"({row(pod)})?.innerText.includes({json.dumps(status)})", f"{pod} is {status}")
    page.until(f"/\\d ms|\\d s/.test(({row('web-')}).innerText)", "how long a start took")
    picture("pods")
    go("workloads")
    for workload, told in [("web", "2/2"), ("db", "1/1"), ("agent", "1/1"), ("import", "Complete"), ("nightly", "0 3 * * *")]:
        page.until(f"({row(workload)})?.innerText.includes({json.dumps(told)})", f"{workload}: {told}")
    picture("workloads")
    go("nodes")
    page.until(f"/\\d.*of.*GiB/.test(({row('rootlet')})?.innerText.replaceAll('\\n', ' '))", "what the node uses")
    picture("nodes")
    go("network")
    port = json.loads(kubectl("get", "service", "web", "-n", "shop", "-o", "json"))["spec"]["ports"][0]["nodePort"]
    see(f"127.0.0.1:{port}", "#list")
    assert page.js(f"document.querySelector('a[href=\"http://127.0.0.1:{port}/\"]').rel") == "noopener noreferrer"
    picture("network")
    go("config")
    page.until(f"({row('settings')})?.innerText.includes('page.html')")
    go("events")
    page.until("document.querySelector('#list').innerText.includes('FailedScheduling')")
    picture("events")
    go("overview")
    see("Warnings")
    page.until("document.querySelectorAll('.spark .line[points*=\" \"]').length >= 2", "graphs with lines")
    picture("overview")


def a_pod_is_looked_at():
    go("pods")
    page.until(row("crash"))
    narrow("crash")
    page.until("document.querySelectorAll('#list .row[data-key]').length === 1", "the filter leaves one row")
    page.key("Enter")
    see("exit code 3", "#detail")
    see("Remedy", "#detail")
    see("ended with exit code 3", "#detail .why")
    picture("pod")
    page.key("l")
    see("no database", "#detail .loglines")
    page.key("y")
    see("restartPolicy: Always", "#detail pre.yaml")
    page.key("e")
    see("BackOff", "#detail .events")
    page.key("Escape")
    page.until("!document.body.classList.contains('open')")
    page.key("Escape")
    page.until("document.querySelectorAll('#list .row[data-key]').length > 5", "the filter is gone")


def a_life_is_a_waterfall():
    pod = kubectl("get", "pods", "-n", "shop", "-l", "app=web", "-o", "name").split()[0].split("/")[1]
    go(f"pods/pods/shop/{pod}/life")
    page.until("document.querySelectorAll('#detail .lane .bar').length >= 8", "the recorded steps")
    steps = page.js("[...document.querySelectorAll('#detail .lanes .step')].map((step) => step.innerText)")
    for step in ["submit", "schedule", "sandbox", "containers"]:
        assert step in steps, f"{step} is not among {steps}"
    picture("life")
    html = rootlet("trace", f"pod/{pod}", "-n", "shop", "--output", "html")
    lanes = html.count('<div class="lane">')
    assert lanes == page.js("document.querySelectorAll('#detail .lanes .lane').length"), f"{lanes} lanes"
    return pod


def logs_follow(pod):
    go(f"pods/pods/shop/{pod}/logs")
    # Lines that are out of sight are not laid out, so they have no `innerText`.
    page.until("document.querySelector('#detail .loglines')?.textContent.includes('ready to serve')", "the first line")
    assert page.js("document.querySelector('#detail .loglines span[style*=ansi2]').textContent") == "ready", "colours"
    count = "document.querySelectorAll('#detail .loglines .line').length"
    before = page.js(count)
    page.until(f"{count} > {before} + 2", "more lines come")
    page.until("(() => { const l = document.querySelector('.loglines'); return l.scrollHeight - l.scrollTop - l.clientHeight < 40; })()", "the end is in sight")
    picture("logs")
    go("workloads/deployments.apps/shop/web/logs")
    page.until("new Set([...document.querySelectorAll('#detail .from')].map((from) => from.textContent)).size === 2", "the logs of both pods")
    picture("workload-logs")


def a_shell_is_a_terminal(pod):
    go(f"pods/pods/shop/{pod}/shell")
    see("#", "#detail .tscreen")
    page.type("echo $((6*7)) $TERM; stty size\n")
    see("42 xterm-256color", "#detail .tscreen")
    rows = page.js("document.querySelectorAll('#detail .tscreen .tline').length")
    page.until(f"/^{rows} \\d+\\s*$/m.test(document.querySelector('#detail .tscreen').innerText)", "the program knows the size")
    page.type("printf '\\033[1;35mcolour\\033[0m \\033[4Cgap\\n'; ls --color=always -l /\n")
    page.until("[...document.querySelectorAll('.tscreen .tline .b')].some((run) => run.innerText === 'colour' && run.style.color.includes('ansi13'))", "bold magenta")
    page.until("/colour     gap/.test(document.querySelector('.tscreen').innerText)", "the cursor moves")
    picture("shell")
    # A program on the alternate screen, by arrows, and what was there before it again.
    page.type("vi /pages/page.html\n")
    see("<h1>Shop</h1>", "#detail .tscreen")
    page.key("ArrowDown")
    page.type(":q\n")
    page.until("!document.querySelector('.tscreen').innerText.includes('<h1>Shop</h1>')", "vi has ended")
    page.type("for i in $(seq 200); do echo row $i; done\n")
    page.until("/^row 1\\s*$/m.test(document.querySelector('.tscroll').innerText)", "lines above the screen")
    page.size(1100, 700)
    page.type("stty size\n")
    page.until("document.querySelectorAll('#detail .tscreen .tline').length < " + str(rows), "the terminal is smaller")
    rows = page.js("document.querySelectorAll('#detail .tscreen .tline').length")
    page.until(f"/^{rows} \\d+\\s*$/m.test(document.querySelector('.tscreen').innerText)", "the program knows the new size")
    page.size(1440, 860)
    page.type("exit 4\n")
    see("the shell has ended with exit code 4", "#detail")
    page.key("Escape")


def actions_ask_first():
    go("workloads")
    page.until(row("web"))
    narrow("web deployment")
    page.key("+")
    see("Replicas", "dialog")
    page.js("document.querySelector('dialog input').value = 3")
    picture("dialog")
    page.key("Enter")
    page.until(f"({row('web')})?.innerText.includes('3/3')", "it is scaled")
    page.key("r")
    agree("Restart Deployment web?")
    see("Deployment web restarts.", "#toast")
    assert "restartedAt" in kubectl("get", "deployment", "web", "-n", "shop", "-o", "jsonpath={.spec.template.metadata.annotations}")
    go("nodes")
    page.until(row("rootlet"))
    page.key("j")
    page.key("c")
    see("Cordon Node", "dialog")
    page.key("Escape")
    page.until("!document.querySelector('dialog')")
    assert kubectl("get", "nodes", "-o", "jsonpath={.items[0].spec.unschedulable}") == "", "Escape does nothing"
    page.key("c")
    agree("Cordon Node")
    page.until(f"({row('rootlet')})?.innerText.includes('cordoned')")
    page.key("c")
    agree("Uncordon Node")
    page.until(f"!({row('rootlet')})?.innerText.includes('cordoned')")
    # Draining evicts pods and leaves daemon sets' alone.
    pods = lambda label: set(kubectl("get", "pods", "-n", "shop", "-l", label, "-o", "name").split())
    web, agent = pods("app=web"), pods("app=agent")
    page.key("D")
    agree("Drain Node")
    see("pods are evicted", "#toast")
    until(lambda: not web & pods("app=web"), "others are in their place")
    assert pods("app=agent") == agent
    page.key("c")
    agree("Uncordon Node")
    page.until(f"!({row('rootlet')})?.innerText.includes('cordoned')")
    kubectl("rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s")
    go("pods")
    page.until(row("greedy"))
    narrow("greedy")
    page.key("x")
    agree("Delete Pod greedy in shop?")
    page.until(f"!({row('greedy')})", "it is gone")
    page.key("Escape")


def anything_can_be_gone_to():
    # What is typed at once is not taken for keys of the list below.
    page.key(":")
    page.type("leases")
    see("coordination.k8s.io/v1", "dialog")
    picture("palette")
    page.key("Enter")
    see("Holder", "#list .head")
    page.until("document.querySelectorAll('#list .row[data-key]').length >= 1")
    kubectl("create", "secret", "generic", "hidden", "-n", "shop", "--from-literal=a=b")
    go("r:secrets")
    page.until(row("hidden"))
    kubectl("delete", "secret", "hidden", "-n", "shop")
    page.until(f"!({row('hidden')})", "the server's table is watched, too")
    go("r:serviceaccounts/serviceaccounts/shop/default/yaml")
    see("kind: ServiceAccount", "#detail pre.yaml")
    # What is written as YAML is what the server has then.
    go("config/configmaps/shop/settings/yaml")
    see("colour: green", "#detail pre.yaml")
    press("Edit")
    page.js("(() => { const t = document.querySelector('textarea.yaml'); t.value = t.value.replace('colour: green', 'colour: \"no\"'); })()")
    picture("edit")
    press("Save")
    page.until("document.querySelector('#detail pre.yaml')?.innerText.includes('colour: \"no\"')")
    data = json.loads(kubectl("get", "configmap", "settings", "-n", "shop", "-o", "json"))["data"]
    assert data == {"colour": "no", "page.html": '<h1>Shop</h1>\n<p>It is "open": come in.</p>\n'}, data
    page.key("Escape")


def a_workload_says_what_holds_it():
    kubectl("create", "quota", "none", "--hard=pods=0", "-n", "shop")
    kubectl("create", "deployment", "lost", "--image", "localhost/absent:1", "-n", "shop")
    go("workloads/deployments.apps/shop/lost")
    see("cannot create its pods", "#detail .why")
    see("ResourceQuota", "#detail .why .remedy")
    kubectl("delete", "deployment/lost", "quota/none", "-n", "shop")
    page.key("Escape")


def fits_a_telephone():
    page.size(375, 700)
    for view in ["overview", "pods", "workloads", "events", "network", "nodes"]:
        go(view)
        page.until("document.querySelector('#list').innerText.length > 20")
        over = page.js("[...document.querySelectorAll('#top > *, .card, .card .list li')].filter((e) => e.offsetParent && e.getBoundingClientRect().right > innerWidth + 1).length")
        assert over == 0, f"{view}: something is beyond the edge"
        assert page.js("document.documentElement.scrollWidth") <= 375, view
    go("overview")
    picture("narrow")
    page.size(1440, 860)


def namespaces_narrow():
    go("pods")
    page.until(row("agent-"))
    page.key("n")
    page.type("shop\n")
    page.until(f"!({row('agent-')})", "pods of other namespaces are left out")
    page.key("n")
    page.type("all\n")
    page.until(row("agent-"))


def thousands_scroll():
    """A thousand objects: only those in sight are on the page, and the last can be gone to."""
    items = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"many-{n:04}", "namespace": "shop"}} for n in range(1000)]
    kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    go("config")
    page.until("Number(document.querySelector('#list .table').getAttribute('aria-rowcount')) > 1000")
    assert page.js("document.querySelectorAll('#list .row[data-key]').length") < 80
    page.key("G")
    last = "document.querySelector('#list .table').getAttribute('aria-rowcount')"
    page.until(f"document.querySelector('#list .row.selected')?.getAttribute('aria-rowindex') === {last}", "G is the last row, from nowhere too")
    narrow("many-")
    page.key("G")
    page.until(f"({row('many-0999')})?.classList.contains('selected')")
    page.key("g")
    page.until(f"({row('many-0000')})?.classList.contains('selected')")
    page.key("Escape")


def restarts_are_survived():
    """The daemon ends and comes back with an empty memory; the page goes on with what there is then."""
    rootlet("down")
    see("reconnecting", "#link")
    rootlet("up", "--ephemeral", "--kubeconfig", kubeconfig)
    see("live", "#link")
    go("pods")
    page.until(f"!({row('web-')})", "pods of before are gone")
    kubectl("create", "configmap", "after", "--from-literal=a=b")
    go("config")
    page.until(row("after"), "changes come again")
    page.errors[:] = [error for error in page.errors if "502" not in error and "WebSocket" not in error]


# Text whose contrast with what is behind it is below 4.5, as WCAG 2 counts it (level AA).
CONTRAST = """(() => {
    const parse = (text) => {
        const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
        return text.startsWith('color(') ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
    };
    const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3])).concat(1);
    const light = (c) => {
        const [r, g, b] = c.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (e) => {
        if (!e) return [255, 255, 255, 1];
        const own = parse(getComputedStyle(e).backgroundColor);
        return own[3] === 1 ? own : over(own, behind(e.parentElement));
    };
    const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const e = node.parentElement;
        if (!node.data.trim() || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        const back = behind(e), text = over(parse(getComputedStyle(e).color), back);
        const [a, b] = [light(text), light(back)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) faint.push(`${node.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
    }
    return [...new Set(faint)];
})()"""


def it_can_be_used_without_eyes_and_mouse():
    """Every control has a name, a role and a place in the order of the Tab key."""
    unnamed = page.js("""[...document.querySelectorAll('button, a, input, select, [role=grid], [role=tab]')]
        .filter((e) => !(e.innerText || e.getAttribute('aria-label') || e.title || e.closest('label')))
        .map((e) => e.outerHTML)""")
    assert unnamed == [], unnamed
    page.key("?")
    see("next, previous", "dialog")
    picture("keys")
    page.key("Escape")
    page.until("!document.querySelector('dialog')")
    for theme in ["dark", "light"]:
        page.theme(theme)
        for view in ["overview", "pods", "events", "network"]:
            go(view)
            page.until("document.querySelector('#list').innerText.length > 20")
            faint = page.js(CONTRAST)
            assert faint == [], f"{view}, {theme}: too faint to be read: {faint}"
    # Whatever has the keyboard shows it.
    page.js("document.activeElement?.blur()")
    for step in range(12):
        page.key("Tab")
        focused = page.js("""(() => {
            const e = document.activeElement, s = getComputedStyle(e);
            return [e.outerHTML.slice(0, 80), e === document.body || (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1) || s.boxShadow !== 'none'];
        })()""")
        assert focused[1], f"the focus is not to be seen: {focused[0]}"
    theme = "getComputedStyle(document.body).backgroundColor"
    page.theme("dark")
    dark = page.js(theme)
    page.key("T")
    assert page.js(theme) != dark, "the theme is changed"
    page.key("T")
    assert page.js(theme) == dark


kubectl("apply", "-f", f"{place}/objects.yaml")
server, address = serve()
page = Browser([user, "chromium"], f"{place}/profile")
try:
    page.size(1440, 860)
    strangers_are_kept_out(address)
    lists_show_what_there_is()
    a_pod_is_looked_at()
    pod = a_life_is_a_waterfall()
    logs_follow(pod)
    a_shell_is_a_terminal(pod)
    actions_ask_first()
    anything_can_be_gone_to()
    namespaces_narrow()
    a_workload_says_what_holds_it()
    fits_a_telephone()
    thousands_scroll()
    it_can_be_used_without_eyes_and_mouse()
    restarts_are_survived()
    assert page.errors == [], page.errors
finally:
    page.close()
    # Between this process and that one there is a shell.
    os.killpg(server.pid, signal.SIGTERM)
    server.wait()
print("rootlet ui: everything is as it should be")
