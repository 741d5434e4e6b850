// The page as a whole: where one is, what the keys do, light and dark.

// `#/view/kind/namespace/name/tab`
const route = {};

function parse() {
	const [view, kind, namespace, name, tab] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
	return { view: view || "overview", kind, namespace: namespace === "-" ? "" : namespace, name, tab };
}

let list; // the view at the left: {element, table, kindOf}
let listScope = new Scope();
let detail;
let detailScope = new Scope();

async function kindNamed(id) {
	return Object.values(KIND).find((kind) => kind.id === id) ?? (await discover()).get(id);
}

async function render() {
	const to = parse();
	const viewChanged = to.view !== route.view;
	const objectChanged = ["kind", "namespace", "name"].some((part) => to[part] !== route[part]);
	Object.assign(route, to);
	if (viewChanged) await mountList(to.view);
	if (!to.name) closeDetail();
	else if (objectChanged || !detail) await openDetail(to);
	else detail.show(to.tab);
	document.title = [to.name ?? viewTitle(), about.context ?? "rootlet"].filter(Boolean).join(" – ");
	drawNav();
}

const viewTitle = () => VIEWS.find((view) => view.id === route.view)?.title ?? route.view.replace(/^r:/, "");

async function mountList(id) {
	listScope.end();
	listScope = new Scope();
	$("filter").value = "";
	let view = VIEWS.find((one) => one.id === id);
	if (!view && id.startsWith("r:")) {
		const kind = await kindNamed(id.slice(2)).catch(() => undefined);
		if (kind) view = resourceView(kind);
	}
	if (!view) {
		$("list").replaceChildren(h("p.empty", null, "There is no such view."));
		list = undefined;
		return;
	}
	list = view.mount(listScope);
	list.ready = attach;
	attach();
	$("list").replaceChildren(list.element);
	$("filter").disabled = !("table" in list);
	if (!document.activeElement || document.activeElement === document.body) (list.table?.element ?? list.element).focus({ preventScroll: true });
}

function attach() {
	drawCount();
	if (!list?.table) return;
	list.table.onarranged = drawCount;
	list.table.filter($("filter").value);
	if (detail?.object) list.table.select(detail.object.metadata.uid);
}

function drawCount() {
	const { table } = list ?? {};
	$("count").textContent = table ? (table.words ? `${table.shown.length} of ${table.rows.length}` : table.rows.length) : "";
}

async function openDetail({ kind: id, namespace, name, tab }) {
	closeDetail();
	const kind = await kindNamed(id).catch(() => undefined);
	if (!kind || parse().name !== name) return;
	detailScope = new Scope();
	document.body.classList.add("open");
	detail = mountDetail(detailScope, kind, namespace, name, tab);
	$("detail").replaceChildren(detail.element);
	if (list?.table && detail.object) list.table.select(detail.object.metadata.uid);
}

function closeDetail() {
	detailScope.end();
	$("detail").replaceChildren();
	detail = undefined;
	document.body.classList.remove("open");
}

// One step back: from the terminal, from the details, from the filter.
function leave() {
	const active = document.activeElement;
	if (active?.closest?.("#detail") && active.matches("textarea, input")) active.blur();
	else if (route.name) {
		location.hash = `#/${encodeURIComponent(route.view)}`;
		list?.table?.element.focus({ preventScroll: true });
	} else if ($("filter").value) setFilter("");
}

function setFilter(words) {
	$("filter").value = words;
	list?.table?.filter(words);
	drawCount();
}

// What an action is for: the object in the details, or the row that is selected.
async function chosen() {
	if (detail?.object) return { object: detail.object, kind: detail.kind };
	const row = list?.table?.row;
	if (!row) return undefined;
	const kind = list.kindOf(row);
	if (row.kind !== undefined && !row.cells) return { object: row, kind };
	const { namespace, name } = row.object.metadata;
	return { object: await askJson(kind.one(namespace, name)), kind };
}

async function openTab(id) {
	if (detail) return location.replace(pathTo(detail.kind, route.namespace, route.name, id));
	const what = await chosen().catch((error) => toast(error.message, true));
	if (what) openObject(what.kind, what.object.metadata.namespace, what.object.metadata.name, id);
}

async function runAction(key) {
	const what = await chosen().catch((error) => toast(error.message, true));
	const action = what && actionsFor(what.object).find((one) => one.key === key);
	if (action) action.run(what.object, what.kind);
}

function moveRow(by) {
	const { table } = list ?? {};
	if (!table) return list?.element.scrollBy(0, by * 60);
	table.move(by);
	const { row } = table;
	// With the details open one leafs through them, without a trail in the browser's history.
	if (detail && row) {
		const o = row.object && row.cells ? row.object : row;
		// Nobody is to have shells in many pods by leafing.
		const tab = route.tab === "shell" ? undefined : route.tab;
		location.replace(pathTo(list.kindOf(row), o.metadata.namespace, o.metadata.name, tab));
	}
}

function nextTab(by) {
	if (!detail?.object) return;
	const fitting = TABS.filter((tab) => tab.fits(detail.object));
	const at = (fitting.indexOf(detail.tab) + by + fitting.length) % fitting.length;
	openTab(fitting[at].id);
}

function goAnywhere() {
	const own = VIEWS.map((view) => ({ text: view.title, note: "view", go: () => (location.hash = `#/${view.id}`) }));
	choose("Go to", own, discover().then((found) => [...found.values()].map((kind) => ({
		text: kind.plural, short: kind.short.join(" "), note: [kind.kind, kind.apiVersion, kind.short.join(", ")].filter(Boolean).join("  "),
		go: () => (location.hash = `#/${HOME[kind.id] ?? encodeURIComponent(`r:${kind.id}`)}`),
	}))));
}

function chooseNamespace() {
	const names = objects(KIND.Namespace).all.map((o) => o.metadata.name).sort();
	choose("Namespace", ["", ...names].map((name) => ({ text: name || "all namespaces", note: "", go: () => setNamespace(name) })));
}

function setNamespace(name) {
	state.namespace = name;
	remember("namespace", name);
	$("namespace").textContent = name || "all namespaces";
	for (const cache of caches.values()) cache.tell();
	const { view } = route;
	if (view?.startsWith("r:")) {
		route.view = undefined;
		render();
	}
	drawNav();
}

function remember(name, value) {
	try {
		localStorage.setItem(`rootlet.${name}`, value);
	} catch {
		// Without storage the next visit begins as the first.
	}
}

function remembered(name) {
	try {
		return localStorage.getItem(`rootlet.${name}`) ?? "";
	} catch {
		return "";
	}
}

function setTheme(theme) {
	if (theme) document.documentElement.dataset.theme = theme;
	else delete document.documentElement.dataset.theme;
	remember("theme", theme);
}

function toggleTheme() {
	const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
	setTheme(dark ? "light" : "dark");
}

const KEY = {
	j: () => moveRow(1), ArrowDown: () => moveRow(1), k: () => moveRow(-1), ArrowUp: () => moveRow(-1),
	PageDown: () => moveRow(20), PageUp: () => moveRow(-20), g: () => moveRow(-1e9), Home: () => moveRow(-1e9), G: () => moveRow(1e9), End: () => moveRow(1e9),
	Enter: () => openTab(undefined), Escape: leave,
	"/": () => (list?.table ? $("filter").focus() : undefined), "?": showKeys, ":": goAnywhere, n: chooseNamespace, T: toggleTheme,
	"]": () => nextTab(1), "[": () => nextTab(-1), f: () => document.body.classList.toggle("wide"),
	d: () => openTab("yaml"), w: () => openTab("overview"),
};
for (const tab of TABS) if (tab.key) KEY[tab.key] = () => openTab(tab.id);
for (const action of ACTIONS) KEY[action.key] = () => runAction(action.key);

function onKey(event) {
	if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
	if (document.querySelector("dialog[open]")) return;
	const { target } = event;
	if (target.matches("input, textarea, select") && event.key !== "Escape") return;
	// Keys that move within what has the focus stay its own.
	const moves = /^(Arrow|Page|Home|End)/.test(event.key);
	if (moves && target.closest("#detail")) return;
	if (event.key === "Enter" && target.matches("button, a, summary")) return;
	const digit = VIEWS[Number(event.key) - 1];
	const work = digit ? () => (location.hash = `#/${digit.id}`) : KEY[event.key];
	if (!work) return;
	event.preventDefault();
	work();
}

function drawNav() {
	const items = VIEWS.map((view, index) => {
		const bad = view.bad ? view.kinds.reduce((sum, kind) => sum + objects(kind).all.filter((o) => inNamespace(o) && view.bad(o)).length, 0) : 0;
		const known = view.kinds?.some((kind) => objects(kind).lists);
		return h("a", { href: `#/${view.id}`, "aria-current": route.view === view.id ? "page" : null, title: `${view.title} (${index + 1})` },
			h("span", null, view.title), bad ? h("span.bad.num", { title: `${bad} not well` }, bad) : "", known ? h("span.num.dim", null, view.count()) : "");
	});
	const other = route.view?.startsWith("r:") && h("a", { href: `#/${encodeURIComponent(route.view)}`, "aria-current": "page" }, h("span", null, viewTitle()));
	const more = button([h("span", null, "Any resource"), h("kbd", null, ":")], goAnywhere, { class: "more" });
	const had = document.activeElement?.closest?.("#nav") ? [...$("nav").children].indexOf(document.activeElement) : -1;
	$("nav").replaceChildren(...[...items, other, more].filter(Boolean));
	if (had >= 0) $("nav").children[had]?.focus();
}

let about = {};

async function start() {
	setTheme(remembered("theme"));
	$("theme").onclick = toggleTheme;
	$("keys").onclick = showKeys;
	$("namespace").onclick = chooseNamespace;
	setNamespace(remembered("namespace"));
	$("filter").addEventListener("input", () => setFilter($("filter").value));
	$("filter").addEventListener("keydown", (event) => {
		if (event.key === "Enter" || event.key === "ArrowDown") {
			if (!list?.table?.row) list?.table?.move(1);
			list?.table?.element.focus();
		} else if (event.key === "Escape") {
			setFilter("");
			list?.table?.element.focus();
		} else return;
		event.preventDefault();
		event.stopPropagation();
	});
	document.addEventListener("keydown", onKey);
	linkListeners.add((state, error) => {
		const text = { live: "live", loading: "loading", broken: "reconnecting" }[state];
		$("link").replaceChildren(dot({ live: "ok", loading: "wait", broken: "bad" }[state]), text);
		$("link").title = error?.message ?? "";
		// Another `rootlet ui` is at this port now.
		if (error?.code === 401) toast(error.message, true);
	});
	for (const kind of [KIND.Namespace, KIND.Node, KIND.Pod, KIND.Event, ...WORKLOADS, KIND.Service, KIND.Ingress, KIND.ConfigMap]) {
		objects(kind).subscribe(drawNavSoon);
	}
	startMeasuring();
	addEventListener("hashchange", () => render());
	await render();
	about = await askJson("/ui/about").catch(() => ({}));
	$("cluster").textContent = about.cluster ?? "";
	render();
}

const drawNavSoon = eachFrame(drawNav);

start();
