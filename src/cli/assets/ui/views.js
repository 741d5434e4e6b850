// The lists at the left and what each row tells.

const state = { namespace: "" };

const dot = (level) => h(`i.dot.${level}`, { "aria-hidden": "true" });
const inNamespace = (object) => !state.namespace || !object.metadata.namespace || object.metadata.namespace === state.namespace;

const nameColumn = (level) => ({
	name: "Name", width: "minmax(170px, 2.4fr)", class: "name", sort: (o) => o.metadata.name,
	cell: (o) => h("span", { "data-mark": level(o), title: o.metadata.name }, dot(level(o)), o.metadata.name),
});
const namespaceColumn = { name: "Namespace", width: "minmax(80px, 1fr)", class: "dim", from: 560, cell: (o) => o.metadata.namespace ?? "" };
const ageColumn = { name: "Age", width: "60px", from: 500, right: true, class: "dim", cell: (o) => age(o.metadata.creationTimestamp), sort: (o) => -new Date(o.metadata.creationTimestamp) };
const kindColumn = { name: "Kind", width: "96px", class: "dim", from: 560, cell: (o) => o.kind };
const status = (text, level) => h(`span.status.${level}`, null, text);

function measured(map, field, tell) {
	return {
		cell: (o) => {
			const sample = usage.last(map, keyOf(o));
			return sample ? tell(sample[field]) : "";
		},
		sort: (o) => usage.last(map, keyOf(o))?.[field] ?? -1,
	};
}

const lines = new Map(); // uid → the pod's life in one line, as far as it is known
let linesWaiting = 0;

// The line of a pod's start. It is asked for when its row comes into sight, a few at a time.
function lifeCell(pod) {
	const { uid } = pod.metadata;
	const known = lines.get(uid);
	if (known?.version === pod.metadata.resourceVersion || known?.settled) return known.steps.length ? lifeLine(known.steps) : "";
	if (linesWaiting < 6 && pod.spec.nodeName) {
		linesWaiting += 1;
		const settled = pod.status?.phase !== "Pending";
		lines.set(uid, { steps: known?.steps ?? [], version: pod.metadata.resourceVersion });
		traceOf(pod).then((steps) => {
			linesWaiting -= 1;
			lines.set(uid, { steps, version: pod.metadata.resourceVersion, settled });
			objects(KIND.Pod).tell();
		});
	}
	return known?.steps.length ? lifeLine(known.steps) : "";
}

const POD_COLUMNS = [
	nameColumn(podLevel),
	namespaceColumn,
	{ name: "Ready", width: "52px", cell: (pod) => podReady(pod).join("/"), right: true },
	{ name: "Status", width: "minmax(128px, 1.3fr)", cell: (pod) => status(podStatus(pod), podLevel(pod)), sort: podStatus },
	{ name: "Restarts", width: "66px", cell: (pod) => podRestarts(pod) || "", sort: podRestarts, right: true, from: 640 },
	{ name: "CPU", width: "56px", right: true, from: 700, ...measured(usage.pods, "cpu", cores) },
	{ name: "Memory", width: "72px", right: true, from: 700, ...measured(usage.pods, "memory", bytes) },
	{ name: "Start", width: "minmax(140px, 1.4fr)", cell: lifeCell, from: 600, sort: (pod) => {
		const steps = firstSteps(lines.get(pod.metadata.uid)?.steps ?? []);
		return steps.length ? Math.max(...steps.map((s) => s.startUs + s.durationUs)) - steps[0].startUs : -1;
	} },
	{ name: "Address", width: "104px", class: "mono dim", from: 980, cell: (pod) => pod.status?.podIP ?? "" },
	{ name: "Node", width: "minmax(70px, 1fr)", class: "dim", from: 1080, cell: (pod) => pod.spec.nodeName ?? "" },
	ageColumn,
];

const requested = (node, name) => objects(KIND.Pod).all
	.filter((pod) => pod.spec.nodeName === node.metadata.name && !["Succeeded", "Failed"].includes(pod.status?.phase))
	.reduce((sum, pod) => sum + pod.spec.containers.reduce((part, c) => part + quantity(c.resources?.requests?.[name]), 0), 0);

const podsOn = (node) => objects(KIND.Pod).all.filter((pod) => pod.spec.nodeName === node.metadata.name);

function nodeMeter(field, name, tell) {
	const used = (node) => usage.last(usage.nodes, node.metadata.name)?.[field];
	return {
		sort: (node) => used(node) ?? -1,
		cell: (node) => {
			const whole = quantity(node.status.allocatable?.[name]);
			return used(node) === undefined ? tell(whole) : meter(used(node), whole, `${tell(used(node))} of ${tell(whole)}`);
		},
	};
}

const NODE_COLUMNS = [
	nameColumn(nodeLevel),
	{ name: "Status", width: "minmax(96px, 1fr)", cell: (node) => status(nodeStatus(node), nodeLevel(node)), sort: nodeStatus },
	{ name: "Roles", width: "minmax(80px, 1fr)", class: "dim", from: 800, cell: nodeRoles },
	{ name: "CPU", width: "minmax(150px, 1.4fr)", ...nodeMeter("cpu", "cpu", cores) },
	{ name: "Memory", width: "minmax(180px, 1.4fr)", from: 560, ...nodeMeter("memory", "memory", bytes) },
	{ name: "Pods", width: "90px", right: true, from: 620, cell: (node) => `${podsOn(node).length} of ${node.status.allocatable?.pods ?? "?"}`, sort: (node) => podsOn(node).length },
	{ name: "Version", width: "minmax(80px, 1fr)", class: "dim", from: 720, cell: (node) => node.status.nodeInfo?.kubeletVersion ?? "" },
	{ name: "Address", width: "104px", class: "mono dim", from: 960, cell: (node) => node.status.addresses?.find((a) => a.type === "InternalIP")?.address ?? "" },
	ageColumn,
];

const workloadLevel = (o) => WORKLOAD_LEVEL[workloadStatus(o)] ?? "wait";
const WORKLOADS = [KIND.Deployment, KIND.StatefulSet, KIND.DaemonSet, KIND.Job, KIND.CronJob];
const WORKLOAD_COLUMNS = [
	nameColumn(workloadLevel),
	kindColumn,
	namespaceColumn,
	{ name: "Ready", width: "64px", right: true, cell: (o) => workloadReady(o).filter((n) => n !== null).join("/"), sort: (o) => workloadReady(o)[0] },
	{ name: "Status", width: "minmax(96px, 1fr)", cell: (o) => status(workloadStatus(o), workloadLevel(o)), sort: workloadStatus },
	{ name: "Schedule", width: "minmax(90px, 1fr)", class: "mono dim", from: 900, cell: (o) => o.spec.schedule ?? "" },
	{ name: "Images", width: "minmax(120px, 2fr)", class: "dim", from: 700, cell: (o) => images(o).join(", ") },
	ageColumn,
];

const EVENT_COLUMNS = [
	{ name: "Seen", width: "64px", right: true, class: "dim", cell: (e) => age(eventTime(e)), sort: (e) => -new Date(eventTime(e)) },
	{ name: "Type", width: "82px", from: 560, cell: (e) => status(e.type ?? "", e.type === "Warning" ? "bad" : "done"), sort: (e) => e.type },
	{ name: "Reason", width: "minmax(110px, 1fr)", cell: (e) => e.reason ?? "" },
	{ name: "About", width: "minmax(140px, 1.5fr)", class: "name", cell: (e) => `${e.involvedObject.kind} ${e.involvedObject.name}` },
	{ name: "Message", width: "minmax(200px, 4fr)", cell: (e) => e.message ?? "" },
	{ name: "Count", width: "52px", right: true, class: "dim", from: 700, cell: (e) => (eventCount(e) > 1 ? eventCount(e) : ""), sort: eventCount },
];

// Where a service or an ingress answers.
function portsOf(service) {
	return (service.spec.ports ?? []).map((p) => `${p.port}${p.nodePort ? `:${p.nodePort}` : ""}/${p.protocol ?? "TCP"}`).join(", ");
}

// Addresses at which this machine's user reaches it, as [text, link].
function publishedAt(object) {
	const found = (object.status?.loadBalancer?.ingress ?? []).map((at) => at.ip ?? at.hostname);
	if (object.kind === "Ingress") {
		// Nobody serves it, or not yet.
		if (!found.length) return [];
		const secure = new Set((object.spec.tls ?? []).flatMap((tls) => tls.hosts ?? []));
		const at = object.status?.loadBalancer?.ingress?.[0];
		const port = at?.ports?.find((p) => p.protocol === "TCP")?.port;
		return (object.spec.rules ?? []).flatMap(({ host, http }) => (http?.paths ?? [{}]).map(({ path = "/" }) => {
			const scheme = secure.has(host) ? "https" : "http";
			const name = host || found[0] || "127.0.0.1";
			const address = `${name}${port && port !== 80 && scheme === "http" ? `:${port}` : ""}${path}`;
			return [address, /\*/.test(name) ? undefined : `${scheme}://${address}`];
		}));
	}
	const ports = object.spec.ports ?? [];
	const web = (host, port) => [`${host.includes(":") ? `[${host}]` : host}:${port}`, `http://${host.includes(":") ? `[${host}]` : host}:${port}/`];
	const balanced = found.flatMap((host) => ports.map((p) => web(host, p.port)));
	return [...balanced, ...ports.filter((p) => p.nodePort && !balanced.length).map((p) => web("127.0.0.1", p.nodePort))];
}

const linkOf = ([text, address]) => (address ? h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, text) : text);

const readyEndpoints = (service) => objects(KIND.EndpointSlice).all
	.filter((slice) => slice.metadata.namespace === service.metadata.namespace && slice.metadata.labels?.["kubernetes.io/service-name"] === service.metadata.name)
	.flatMap((slice) => slice.endpoints ?? []);

function serviceLevel(object) {
	if (object.kind === "Ingress") return object.status?.loadBalancer?.ingress?.length ? "ok" : "wait";
	if (object.spec.type === "ExternalName" || !object.spec.selector) return "done";
	return readyEndpoints(object).some((endpoint) => endpoint.conditions?.ready !== false) ? "ok" : "wait";
}

const NETWORK_COLUMNS = [
	nameColumn(serviceLevel),
	{ ...kindColumn, name: "Type", width: "108px", cell: (o) => (o.kind === "Service" ? o.spec.type : "Ingress") },
	namespaceColumn,
	{ name: "Cluster address", width: "minmax(104px, 1fr)", class: "mono dim", from: 760, cell: (o) => o.spec.clusterIP ?? o.spec.ingressClassName ?? "" },
	{ name: "Ports", width: "minmax(120px, 1.5fr)", class: "mono", cell: (o) => (o.kind === "Service" ? portsOf(o) : "") },
	{ name: "Endpoints", width: "80px", right: true, from: 640, cell: (o) => (o.kind === "Service" ? readyEndpoints(o).length : ""), sort: (o) => (o.kind === "Service" ? readyEndpoints(o).length : -1) },
	{ name: "Published at", width: "minmax(150px, 2fr)", from: 700, cell: (o) => {
		const at = publishedAt(o);
		return at.length ? h("span", null, at.map((one, index) => [index ? ", " : "", linkOf(one)])) : "";
	} },
	ageColumn,
];

const CONFIG_COLUMNS = [
	nameColumn(() => "done"),
	namespaceColumn,
	{ name: "Keys", width: "minmax(110px, 3fr)", class: "mono dim", cell: (o) => Object.keys({ ...o.data, ...o.binaryData }).join(", ") },
	{ name: "Size", width: "80px", right: true, cell: (o) => bytes(sizeOf(o)), sort: sizeOf },
	ageColumn,
];

function sizeOf(object) {
	return Object.values({ ...object.data, ...object.binaryData }).reduce((sum, text) => sum + text.length, 0);
}

// The list of one or several kinds.
function listView({ id, title, kinds, also = [], columns, bad }) {
	return {
		id, title, kinds, bad,
		count: () => kinds.reduce((sum, kind) => sum + objects(kind).all.filter(inNamespace).length, 0),
		mount(scope) {
			const caches = kinds.map(objects);
			const table = new Table({
				label: title, columns, key: (o) => o.metadata.uid,
				open: (o) => openObject(kindOf(o), o.metadata.namespace, o.metadata.name),
				empty: () => {
					const failed = caches.find((cache) => cache.error);
					if (failed) return failed.error.message;
					return caches.some((cache) => cache.state === "loading" && !cache.lists) ? "Loading." : `There are none${state.namespace ? ` in ${state.namespace}` : ""}.`;
				},
			});
			const update = () => table.set(caches.flatMap((cache) => cache.all).filter(inNamespace));
			for (const cache of caches) cache.subscribe(update, scope);
			for (const kind of also) objects(kind).subscribe(update, scope);
			usage.listeners.add(table.draw);
			scope.add(() => usage.listeners.delete(table.draw));
			scope.every(1000, table.draw);
			update();
			return { element: table.element, table, kindOf };
		},
	};
}

const kindOf = (object) => KIND[object.kind];

const VIEWS = [
	{ id: "overview", title: "Overview", mount: mountOverview },
	listView({ id: "nodes", title: "Nodes", kinds: [KIND.Node], also: [KIND.Pod], columns: NODE_COLUMNS, bad: (o) => nodeLevel(o) === "bad" }),
	listView({ id: "workloads", title: "Workloads", kinds: WORKLOADS, columns: WORKLOAD_COLUMNS, bad: (o) => ["bad", "wait"].includes(workloadLevel(o)) }),
	listView({ id: "pods", title: "Pods", kinds: [KIND.Pod], columns: POD_COLUMNS, bad: (o) => podLevel(o) === "bad" }),
	listView({ id: "events", title: "Events", kinds: [KIND.Event], columns: EVENT_COLUMNS }),
	listView({ id: "network", title: "Network", kinds: [KIND.Service, KIND.Ingress], also: [KIND.EndpointSlice], columns: NETWORK_COLUMNS }),
	listView({ id: "config", title: "Config maps", kinds: [KIND.ConfigMap], columns: CONFIG_COLUMNS }),
];

// A kind of which the page knows nothing but what discovery tells: the server's own table, kept by a watch.
function resourceView(kind) {
	return {
		id: `r:${kind.id}`, title: kind.plural, kind,
		mount(scope) {
			const rows = new Rows(kind);
			const place = h("div.filling");
			const view = { element: place, table: undefined, kindOf: () => kind };
			let drawn;
			const update = () => {
				if (!view.table || drawn !== rows.columns) {
					drawn = rows.columns;
					view.table = new Table({
						label: kind.plural, columns: tableColumns(drawn, kind), key: (row) => row.object.metadata.uid,
						open: (row) => openObject(kind, row.object.metadata.namespace, row.object.metadata.name),
						empty: () => rows.error?.message ?? (rows.lists ? "There are none." : "Loading."),
					});
					place.replaceChildren(view.table.element);
					view.ready?.();
				}
				view.table.set(rows.all.filter((row) => inNamespace(row.object)));
			};
			rows.subscribe(update, scope);
			scope.add(() => rows.stop());
			update();
			return view;
		},
	};
}

function tableColumns(definitions, kind) {
	const time = (definition) => definition.format === "date" || definition.name === "Age";
	const own = definitions.map((definition, index) => {
		const isName = definition.format === "name" || (index === 0 && definition.name === "Name");
		return {
			name: definition.name, width: isName ? "minmax(160px, 3fr)" : "minmax(70px, 1.5fr)", class: isName ? "name" : "",
			right: definition.type === "integer" || definition.type === "number",
			from: definition.priority ? 900 + 80 * index : index > 2 ? 300 + 70 * index : 0,
			cell: (row) => (time(definition) ? age(row.object.metadata.creationTimestamp) : String(row.cells[index] ?? "")),
			sort: (row) => (time(definition) ? -new Date(row.object.metadata.creationTimestamp) : row.cells[index] ?? ""),
		};
	});
	if (!own.length) own.push({ name: "Name", width: "1fr", class: "name", cell: (row) => row.object.metadata.name });
	if (kind.namespaced) own.splice(1, 0, { ...namespaceColumn, cell: (row) => row.object.metadata.namespace });
	return own;
}

// The first page: what there is, what it uses, and what is not well.
function mountOverview(scope) {
	const graphs = h("div.graphs");
	const pods = h("section.card");
	const bad = h("section.card");
	const warnings = h("section.card.wide");
	const element = h("div.overview", { tabindex: 0 }, graphs, h("div.cards", null, pods, bad, warnings));
	let drawn;
	const update = () => {
		const nodes = objects(KIND.Node).all;
		const names = nodes.map(keyOf).join();
		if (names !== drawn) {
			drawn = names;
			graphs.replaceChildren(...nodes.slice(0, 8).map((node) => {
				const { name } = node.metadata;
				const most = (field) => () => quantity(objects(KIND.Node).get(undefined, name)?.status.allocatable?.[field]);
				return h("section.card.node", null, h("h2", null, h("a", { href: `#/nodes/nodes/-/${name}` }, name), h("span.dim", null, "node")),
					graph("CPU", scope, usage.nodes, name, "cpu", cores, most("cpu")), graph("Memory", scope, usage.nodes, name, "memory", bytes, most("memory")));
			}));
		}
		drawPods(pods);
		drawBad(bad);
		drawWarnings(warnings);
	};
	for (const kind of [KIND.Node, KIND.Pod, KIND.Event, ...WORKLOADS]) objects(kind).subscribe(update, scope);
	scope.every(10000, update);
	update();
	return { element };
}

function drawPods(place) {
	const all = objects(KIND.Pod).all.filter(inNamespace);
	const by = { ok: [], wait: [], bad: [], done: [] };
	for (const pod of all) by[podLevel(pod)].push(pod);
	const names = { ok: "running", wait: "starting or ending", bad: "not well", done: "completed" };
	place.replaceChildren(h("h2", null, h("a", { href: "#/pods" }, "Pods"), h("span.dim", null, all.length)),
		h("div.stack", { "aria-hidden": "true" }, Object.entries(by).map(([level, list]) => h(`span.${level}`, { style: { "flex-grow": list.length } }))),
		h("ul.legend", null, Object.entries(by).filter(([, list]) => list.length).map(([level, list]) => h("li", null, dot(level), h("b", null, list.length), names[level]))),
		h("ul.list", null, [...by.bad, ...by.wait].slice(0, 8).map((pod) => row(podLevel(pod), KIND.Pod, pod, podStatus(pod)))));
}

const row = (level, kind, o, note) => h("li", null, dot(level), h("a", { href: pathTo(kind, o.metadata.namespace, o.metadata.name) }, o.metadata.name), h("span.dim", null, note));

function drawBad(place) {
	const all = WORKLOADS.flatMap((kind) => objects(kind).all).filter(inNamespace);
	const bad = all.filter((o) => ["bad", "wait"].includes(workloadLevel(o)));
	place.replaceChildren(h("h2", null, h("a", { href: "#/workloads" }, "Workloads"), h("span.dim", null, all.length)),
		bad.length ? h("ul.list", null, bad.slice(0, 10).map((o) => row(workloadLevel(o), kindOf(o), o, `${o.kind}, ${workloadReady(o).filter((n) => n !== null).join("/")}, ${workloadStatus(o)}`)))
			: h("p.dim", null, all.length ? "All are as they should be." : "There are none."));
}

function drawWarnings(place) {
	const all = objects(KIND.Event).all.filter((event) => event.type === "Warning" && inNamespace(event));
	all.sort((a, b) => new Date(eventTime(b)) - new Date(eventTime(a)));
	place.replaceChildren(h("h2", null, h("a", { href: "#/events" }, "Warnings"), h("span.dim", null, all.length)),
		all.length ? eventList(all.slice(0, 12), true) : h("p.dim", null, "There were none in the last hour."));
}

// Events, newest first.
function eventList(events, about) {
	return h("table.events", null, h("tbody", null, events.map((event) => h("tr", null,
		h("td.dim.num", { title: eventTime(event) }, age(eventTime(event))),
		h("td", null, status(event.reason ?? "", event.type === "Warning" ? "bad" : "done")),
		about && h("td.name", null, aboutLink(event.involvedObject)),
		h("td", null, event.message, eventCount(event) > 1 && h("span.dim", null, ` ×${eventCount(event)}`))))));
}

function aboutLink(about) {
	const kind = KIND[about.kind];
	const text = `${about.kind} ${about.name}`;
	return kind ? h("a", { href: pathTo(kind, about.namespace, about.name) }, text) : text;
}
