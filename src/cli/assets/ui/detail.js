// One object: what it is, how it is, and what can be done to it.

const HOME = {
	nodes: "nodes", pods: "pods", events: "events", services: "network", "ingresses.networking.k8s.io": "network", configmaps: "config",
	...Object.fromEntries(WORKLOADS.map((kind) => [kind.id, "workloads"])),
};

// Where on the page an object is.
function pathTo(kind, namespace, name, tab) {
	const view = route.view && viewLists(route.view, kind) ? route.view : HOME[kind.id] ?? `r:${kind.id}`;
	return `#/${[view, kind.id, namespace || "-", name, tab].filter(Boolean).map(encodeURIComponent).join("/")}`;
}

function viewLists(view, kind) {
	return view === `r:${kind.id}` || HOME[kind.id] === view;
}

function openObject(kind, namespace, name, tab) {
	location.hash = pathTo(kind, namespace, name, tab);
}

const hasPods = (object) => ["Node", "Service", "ReplicaSet", ...WORKLOADS.map((kind) => kind.kind)].includes(object.kind);
const isPod = (object) => object.kind === "Pod";
const isWorkload = (object) => WORKLOADS.some((kind) => kind.kind === object.kind);

// The tabs: which objects have them, and what is in them. `fixed` ones are not made anew when the object changes.
const TABS = [
	{ id: "overview", title: "Overview", fits: () => true, mount: overviewTab },
	{ id: "life", title: "Life", key: "t", fits: isPod, mount: lifeTab },
	{ id: "logs", title: "Logs", key: "l", fits: (object) => isPod(object) || isWorkload(object), fixed: true, mount: logsTab },
	{ id: "shell", title: "Shell", key: "s", fits: isPod, fixed: true, mount: shellTab },
	{ id: "pods", title: "Pods", fits: hasPods, fixed: true, mount: podsTab },
	{ id: "data", title: "Data", fits: (object) => object.kind === "ConfigMap", mount: dataTab },
	{ id: "events", title: "Events", key: "e", fits: (object) => object.kind !== "Event", fixed: true, mount: eventsTab },
	{ id: "yaml", title: "YAML", key: "y", fits: () => true, fixed: true, mount: yamlTab },
];

function mountDetail(scope, kind, namespace, name, wanted) {
	const shared = KIND[kind.kind]?.id === kind.id;
	const cache = shared ? objects(KIND[kind.kind]) : new Objects(kind, namespace, name);
	if (!shared) scope.add(() => cache.stop());
	const title = h("h1");
	const chip = h("span");
	const buttons = h("div.actions");
	const tabs = h("div.tabs", { role: "tablist", "aria-label": "Details" });
	const body = h("div.tab", { role: "tabpanel", id: "tabpanel" });
	const element = h("section.detail", { "aria-label": `${kind.kind} ${name}` },
		h("header", null, h("div.heading", null, h("span.dim.kind", null, kind.kind), title, chip, buttons,
			button("×", leave, { class: "close", "aria-label": "Close", title: "Close (Esc)" })), tabs), body);
	const view = { element, kind, object: undefined, tab: undefined, open };
	let inner;
	let drawn;
	let label = "";

	function open(id) {
		inner?.end();
		inner = new Scope();
		view.tab = TABS.find((tab) => tab.id === id && tab.fits(view.object)) ?? TABS[0];
		body.setAttribute("aria-label", view.tab.title);
		place(view.tab.mount(view.object, inner, () => view.object, kind));
		drawTabs();
	}
	function place(content) {
		const at = body.scrollTop;
		body.replaceChildren(content);
		body.classList.toggle("filled", content.classList.contains("filling"));
		body.scrollTop = at;
	}
	function drawTabs() {
		tabs.replaceChildren(...TABS.filter((tab) => tab.fits(view.object)).map((tab) =>
			button(tab.title, () => goTo(tab.id), { role: "tab", "aria-selected": tab === view.tab, "aria-controls": "tabpanel", title: tab.key ? `${tab.title} (${tab.key})` : null })));
	}
	function goTo(id) {
		location.replace(pathTo(kind, namespace, name, id));
	}
	function update() {
		const object = cache.get(kind.namespaced ? namespace : undefined, name);
		title.textContent = name;
		title.title = namespace ? `${namespace}/${name}` : name;
		if (!object) {
			chip.replaceChildren(status(cache.lists ? "gone" : "", "done"));
			if (view.object) buttons.replaceChildren();
			else if (cache.lists || cache.error) body.replaceChildren(h("p.empty", null, cache.error?.message ?? `There is no ${kind.kind} of this name.`));
			return;
		}
		if (drawn === object) return;
		const first = !view.object || view.object.metadata.uid !== object.metadata.uid;
		view.object = object;
		drawn = object;
		const [text, level] = statusOf(object);
		chip.replaceChildren(namespace ? h("span.dim", null, `in ${namespace}`) : "", text ? status(text, level) : "");
		const now = actionsFor(object).map((action) => labelOf(action, object)).join();
		if (now !== label || !buttons.firstChild) {
			label = now;
			buttons.replaceChildren(...actionsFor(object).map((action) =>
				button(labelOf(action, object), () => action.run(view.object, kind), { class: action.danger ? "danger" : null, title: `${labelOf(action, object)} (${action.key})` })));
		}
		if (first) open(wanted);
		else if (!view.tab.fixed) {
			inner.end();
			inner = new Scope();
			place(view.tab.mount(object, inner, () => view.object, kind));
		}
	}
	cache.subscribe(update, scope);
	// What an overview tells of other objects changes with them.
	const beside = { Service: KIND.EndpointSlice, Node: KIND.Pod }[kind.kind];
	if (beside) {
		objects(beside).subscribe(() => {
			drawn = undefined;
			update();
		}, scope);
	}
	scope.add(() => inner?.end());
	view.show = (id) => {
		wanted = id;
		if (view.object && view.tab?.id !== (id ?? "overview")) open(id);
	};
	update();
	return view;
}

function statusOf(object) {
	switch (object.kind) {
		case "Pod":
			return [podStatus(object), podLevel(object)];
		case "Node":
			return [nodeStatus(object), nodeLevel(object)];
		case "Event":
			return [object.type, object.type === "Warning" ? "bad" : "done"];
		default: {
			if (isWorkload(object)) return [workloadStatus(object), workloadLevel(object)];
			if (object.metadata.deletionTimestamp) return ["Terminating", "wait"];
			if (object.status?.phase) return [object.status.phase, /^(Active|Bound|Available|Running)$/.test(object.status.phase) ? "ok" : "wait"];
			const ready = ["Ready", "Available"].map((type) => condition(object, type)).find(Boolean);
			return ready ? [ready.status === "True" ? ready.type : `Not ${ready.type.toLowerCase()}`, ready.status === "True" ? "ok" : "wait"] : ["", ""];
		}
	}
}

// A list of what is known, without what is not.
function facts(entries) {
	return h("dl.facts", null, entries.filter(([, value]) => value !== undefined && value !== null && value !== "").map(([name, value]) => [h("dt", null, name), h("dd", null, value)]));
}

const section = (title, ...content) => h("section", null, h("h2", null, title), content);

function grid(head, rows) {
	return h("div.scrolling", null, h("table.grid", null, h("thead", null, h("tr", null, head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", null, rows.map((cells) => h("tr", null, cells.map((cell) => h("td", null, cell)))))));
}

function chips(map) {
	const entries = Object.entries(map ?? {});
	return entries.length ? h("span.chips", null, entries.map(([key, value]) => h("span.chip", { title: `${key}=${value}` }, key, value && h("b", null, value)))) : "";
}

function objectLink(about, namespace) {
	const kind = Object.values(KIND).find((k) => k.kind === about.kind);
	const text = `${about.kind} ${about.name}`;
	return kind ? h("a", { href: pathTo(kind, kind.namespaced ? namespace : undefined, about.name) }, text) : text;
}

function conditions(object) {
	const all = object.status?.conditions ?? [];
	if (!all.length) return null;
	// Of some conditions it is good news that they are not met.
	const good = (c) => (c.status === "True") !== /Pressure$|Unavailable$|Failure$|Failed$|Problem$|FailureTarget/.test(c.type);
	return section("Conditions", grid(["Condition", "Status", "Since", "Reason", "Message"], all.map((c) =>
		[c.type, status(c.status, c.status === "Unknown" ? "wait" : good(c) ? "ok" : "bad"), age(c.lastTransitionTime ?? c.lastUpdateTime), c.reason ?? "", c.message ?? ""])));
}

function metadata(object) {
	const { metadata: meta } = object;
	const notes = Object.fromEntries(Object.entries(meta.annotations ?? {}).filter(([key]) => key !== "kubectl.kubernetes.io/last-applied-configuration"));
	return facts([
		["Created", `${age(meta.creationTimestamp)} ago, ${new Date(meta.creationTimestamp).toLocaleString()}`],
		["Owned by", meta.ownerReferences?.length ? h("span", null, meta.ownerReferences.map((owner, index) => [index ? ", " : "", objectLink(owner, meta.namespace)])) : ""],
		["Labels", chips(meta.labels)],
		["Annotations", chips(notes)],
		["Finalizers", meta.finalizers?.join(", ")],
	]);
}

function overviewTab(object, scope, current, kind) {
	const more = { Pod: podOverview, Node: nodeOverview, Service: serviceOverview, Ingress: serviceOverview, Event: eventOverview }[object.kind];
	return h("div.overview", { tabindex: 0 }, more?.(object, scope), isWorkload(object) && workloadLevel(object) !== "ok" && whyBox(object), isWorkload(object) && workloadOverview(object), section("Object", metadata(object)), conditions(object));
}

function eventOverview(event) {
	return section("Event", facts([["About", aboutLink(event.involvedObject)], ["Reason", event.reason], ["Message", event.message], ["Count", eventCount(event)],
		["Last seen", new Date(eventTime(event)).toLocaleString()], ["From", event.reportingComponent || event.source?.component]]));
}

const verdicts = new Map(); // uid → {version, element}

// What holds a pod, or what should have pods, as `rootlet why` tells it.
function whyBox(object) {
	const { uid, resourceVersion, namespace, name } = object.metadata;
	const known = verdicts.get(uid);
	if (known?.version === resourceVersion) return known.element;
	const element = known?.element ?? h("p.why", { role: "status" });
	verdicts.set(uid, { version: resourceVersion, element });
	askJson(`/ui/why/${object.kind}/${namespace}/${encodeURIComponent(name)}`).then((verdict) => {
		element.className = `why ${verdict.step ? statusOf(object)[1] : "done"}`;
		element.replaceChildren(verdict.step ? h("b", null, verdict.step) : "", h("span", null, verdict.finding[0].toUpperCase() + verdict.finding.slice(1)),
			verdict.evidence ? h("span.evidence", null, verdict.evidence) : "", verdict.remedy ? h("span.remedy", null, h("b", null, "Remedy"), verdict.remedy) : "");
	}, () => element.replaceChildren());
	return element;
}

function stateOf(container) {
	const { running, waiting, terminated } = container?.state ?? {};
	if (running) return [`running since ${age(running.startedAt)}`, container.ready ? "ok" : "wait"];
	if (terminated) return [`${ending(terminated)}${terminated.exitCode ? `, exit code ${terminated.exitCode}` : ""}, ${age(terminated.finishedAt)} ago`, terminated.exitCode ? "bad" : "done"];
	if (waiting) return [waiting.reason ?? "waiting", /BackOff|Err|Invalid/.test(waiting.reason) ? "bad" : "wait"];
	return ["", "done"];
}

function podOverview(pod, scope) {
	const statuses = [...(pod.status?.initContainerStatuses ?? []), ...(pod.status?.containerStatuses ?? []), ...(pod.status?.ephemeralContainerStatuses ?? [])];
	const of = (name) => statuses.find((s) => s.name === name);
	const all = ["initContainers", "containers", "ephemeralContainers"].flatMap((list) => pod.spec[list] ?? []);
	const range = (container, name) => {
		const { requests = {}, limits = {} } = container.resources ?? {};
		return requests[name] || limits[name] ? `${requests[name] ?? "–"} … ${limits[name] ?? "–"}` : "";
	};
	const key = keyOf(pod);
	return [
		whyBox(pod),
		section("Pod", facts([
			["Node", pod.spec.nodeName && h("a", { href: pathTo(KIND.Node, undefined, pod.spec.nodeName) }, pod.spec.nodeName)],
			["Address", (pod.status?.podIPs ?? []).map((at) => at.ip).join(", ")],
			["Account", pod.spec.serviceAccountName],
			["Quality of service", pod.status?.qosClass],
			["Volumes", (pod.spec.volumes ?? []).filter((v) => !v.name.startsWith("kube-api-access-")).map((v) => `${v.name} (${Object.keys(v).find((k) => k !== "name") ?? ""})`).join(", ")],
		])),
		section("Containers", grid(["Name", "Image", "State", "Restarts", "Ports", "CPU", "Memory"], all.map((container) => {
			const [text, level] = stateOf(of(container.name));
			return [container.name, container.image, status(text, level), of(container.name)?.restartCount || "", (container.ports ?? []).map((p) => p.containerPort).join(", "), range(container, "cpu"), range(container, "memory")];
		}))),
		h("div.graphs", null, graph("CPU", scope, usage.pods, key, "cpu", cores), graph("Memory", scope, usage.pods, key, "memory", bytes)),
	];
}

function nodeOverview(node, scope) {
	const { name } = node.metadata;
	const info = node.status?.nodeInfo ?? {};
	const names = Object.keys(node.status?.capacity ?? {}).filter((resource) => node.status.capacity[resource] !== "0");
	const tell = (resource, value) => (/memory|storage|hugepages/.test(resource) ? bytes(quantity(value)) : value);
	const used = usage.last(usage.nodes, name);
	const most = (field) => () => quantity(objects(KIND.Node).get(undefined, name)?.status.allocatable?.[field]);
	return [
		h("div.graphs", null, graph("CPU", scope, usage.nodes, name, "cpu", cores, most("cpu")), graph("Memory", scope, usage.nodes, name, "memory", bytes, most("memory"))),
		section("Resources", grid(["Resource", "Capacity", "Allocatable", "Requested by pods", "Used"], names.map((resource) => {
			const asked = resource === "pods" ? podsOn(node).length : requested(node, resource);
			return [resource, tell(resource, node.status.capacity[resource]), tell(resource, node.status.allocatable?.[resource]),
				resource === "cpu" ? cores(asked) : tell(resource, String(asked)), used && resource === "cpu" ? cores(used.cpu) : used && resource === "memory" ? bytes(used.memory) : ""];
		}))),
		section("Node", facts([
			["Addresses", (node.status?.addresses ?? []).map((at) => `${at.address} (${at.type})`).join(", ")],
			["Kubelet", info.kubeletVersion], ["Runtime", info.containerRuntimeVersion], ["System", [info.osImage, info.architecture].filter(Boolean).join(", ")], ["Kernel", info.kernelVersion],
			["Taints", (node.spec?.taints ?? []).map((t) => `${t.key}${t.value ? `=${t.value}` : ""}:${t.effect}`).join(", ")],
			["Pods' network", (node.spec?.podCIDRs ?? []).join(", ")],
		])),
	];
}

function serviceOverview(object) {
	const at = publishedAt(object);
	const links = at.length ? h("span", null, at.map((one, index) => [index ? ", " : "", linkOf(one)])) : "";
	if (object.kind === "Ingress") {
		const paths = (object.spec.rules ?? []).flatMap(({ host, http }) => (http?.paths ?? []).map((p) =>
			[host ?? "any host", `${p.path ?? "/"} (${p.pathType})`, p.backend.service ? objectLink({ kind: "Service", name: p.backend.service.name }, object.metadata.namespace) : p.backend.resource?.name ?? "", String(p.backend.service?.port.number ?? p.backend.service?.port.name ?? "")]));
		return [section("Ingress", facts([["Class", object.spec.ingressClassName], ["Published at", links]])), section("Rules", grid(["Host", "Path", "Backend", "Port"], paths))];
	}
	const endpoints = readyEndpoints(object);
	return [
		section("Service", facts([["Type", object.spec.type], ["Cluster addresses", (object.spec.clusterIPs ?? []).join(", ")], ["Published at", links], ["External name", object.spec.externalName], ["Selector", chips(object.spec.selector)], ["Affinity", object.spec.sessionAffinity !== "None" ? object.spec.sessionAffinity : ""]])),
		(object.spec.ports ?? []).length && section("Ports", grid(["Name", "Port", "Target", "Node port", "Protocol"], object.spec.ports.map((p) => [p.name ?? "", String(p.port), String(p.targetPort ?? ""), String(p.nodePort ?? ""), p.protocol ?? "TCP"]))),
		endpoints.length > 0 && section("Endpoints", grid(["Address", "State", "Pod"], endpoints.map((e) => [e.addresses.join(", "), status(e.conditions?.ready === false ? "not ready" : "ready", e.conditions?.ready === false ? "wait" : "ok"), e.targetRef ? objectLink(e.targetRef, object.metadata.namespace) : ""]))),
	];
}

function workloadOverview(object) {
	const { spec, status: now = {} } = object;
	const [ready, wanted] = workloadReady(object);
	return section(object.kind, facts([
		["Ready", wanted === null ? "" : `${ready} of ${wanted}`],
		["Up to date", object.kind === "DaemonSet" ? now.updatedNumberScheduled : now.updatedReplicas],
		["Available", object.kind === "DaemonSet" ? now.numberAvailable : now.availableReplicas],
		["Active, succeeded, failed", object.kind === "Job" ? `${now.active ?? 0}, ${now.succeeded ?? 0}, ${now.failed ?? 0}` : ""],
		["Schedule", spec.schedule && `${spec.schedule}${spec.timeZone ? ` (${spec.timeZone})` : ""}`],
		["Last run", now.lastScheduleTime && `${age(now.lastScheduleTime)} ago`],
		["Strategy", spec.strategy?.type ?? spec.updateStrategy?.type ?? spec.concurrencyPolicy],
		["Selector", chips(spec.selector?.matchLabels)],
		["Images", images(object).join(", ")],
	]));
}

function lifeTab(pod) {
	const place = h("div.overview", { tabindex: 0 }, h("p.empty", null, "Loading."));
	traceOf(pod).then((steps) => {
		const recorded = steps.length > 0;
		const all = recorded ? steps : stepsOfStatus(pod);
		const first = firstSteps(all);
		const later = all.slice(first.length);
		const start = all[0]?.startUs ?? 0;
		place.replaceChildren(...[
			section(first.length ? `Started within ${micro(Math.max(...first.map((s) => s.startUs + s.durationUs)) - start)}` : "Start", waterfall(first)),
			!recorded && h("p.dim", null, "The daemon has no record of it, so this is from the times in its status: whole seconds."),
			later.length > 0 && section("Later", grid(["After", "Step", "Took", "What"], later.map((s) => [span((s.startUs - start) / 1e6), s.step, micro(s.durationUs), s.detail ?? ""]))),
			whyBox(pod)].filter(Boolean));
	});
	return place;
}

function logsTab(object, scope, current) {
	return new Logs(object, scope, isPod(object) ? undefined : () => podsOf(current())).element;
}

function shellTab(pod, scope) {
	if (pod.status?.phase !== "Running") return h("p.empty", null, "A shell needs a container that runs.");
	return new Shell(pod, scope, pod.metadata.annotations?.["kubectl.kubernetes.io/default-container"]).element;
}

function podsOf(object) {
	const all = objects(KIND.Pod).all;
	const { namespace, name, uid } = object.metadata;
	const owns = (pod, id) => pod.metadata.ownerReferences?.some((owner) => owner.uid === id);
	switch (object.kind) {
		case "Node":
			return all.filter((pod) => pod.spec.nodeName === name);
		case "Service":
			return object.spec.selector ? all.filter((pod) => pod.metadata.namespace === namespace && selects({ matchLabels: object.spec.selector }, pod.metadata.labels)) : [];
		case "CronJob": {
			const jobs = objects(KIND.Job).all.filter((job) => owns(job, uid));
			return all.filter((pod) => jobs.some((job) => owns(pod, job.metadata.uid)));
		}
		case "Deployment":
			return all.filter((pod) => pod.metadata.namespace === namespace && selects(object.spec.selector, pod.metadata.labels));
		default:
			return all.filter((pod) => owns(pod, uid));
	}
}

function podsTab(object, scope, current) {
	const table = new Table({ label: "Pods", columns: POD_COLUMNS, key: (o) => o.metadata.uid, open: (pod) => openObject(KIND.Pod, pod.metadata.namespace, pod.metadata.name), empty: () => "It has no pods." });
	const update = () => table.set(podsOf(current()));
	objects(KIND.Pod).subscribe(update, scope);
	if (object.kind === "CronJob") objects(KIND.Job).subscribe(update, scope);
	scope.every(1000, table.draw);
	update();
	table.element.classList.add("filling");
	return table.element;
}

function dataTab(object) {
	const entries = Object.entries(object.data ?? {});
	const binary = Object.entries(object.binaryData ?? {});
	if (!entries.length && !binary.length) return h("p.empty", null, "It is empty.");
	return h("div.overview", { tabindex: 0 }, entries.map(([key, text]) => section(key, h("pre.text", null, text))),
		binary.map(([key, text]) => section(key, h("p.dim", null, `${bytes((text.length * 3) / 4)}, not text`))));
}

function eventsTab(object, scope, current) {
	const place = h("div.overview", { tabindex: 0 });
	const update = () => {
		const { uid, name, namespace } = current().metadata;
		const kind = current().kind;
		const mine = objects(KIND.Event).all.filter(({ involvedObject: about }) =>
			about.uid === uid || (about.kind === kind && about.name === name && (about.namespace ?? "") === (namespace ?? "")));
		mine.sort((a, b) => new Date(eventTime(b)) - new Date(eventTime(a)));
		place.replaceChildren(mine.length ? eventList(mine) : h("p.empty", null, "There are none. They are kept for an hour."));
	};
	objects(KIND.Event).subscribe(update, scope);
	scope.every(10000, update);
	update();
	return place;
}

// The object as YAML, with what is written to it: the server takes YAML as it is.
function yamlTab(object, scope, current, kind) {
	const content = h("div.filling.yamltab");
	const readOnly = kind.verbs.length > 0 && !kind.verbs.includes("update");
	const view = () => {
		const note = h("span.dim", { role: "status" });
		const drawn = current();
		let shown = yamlView(clean(drawn));
		content.replaceChildren(h("div.bar", null, !readOnly && button("Edit", edit), button("Copy", () => navigator.clipboard.writeText(yamlText(clean(current()))).then(() => toast("Copied."))), note), shown);
		return { drawn, refresh: () => {
			const next = yamlView(clean(current()));
			next.scrollTop = shown.scrollTop;
			shown.replaceWith(next);
			shown = next;
		} };
	};
	let now = view();
	function edit() {
		const text = h("textarea.yaml", { spellcheck: "false", "aria-label": "YAML" });
		text.value = yamlText(clean(current()));
		const note = h("span.bad", { role: "alert" });
		const save = async () => {
			try {
				await ask(pathOf(current(), kind), { method: "PUT", type: "application/yaml", body: text.value });
				toast(`${nameOf(current())} is written.`);
				now = view();
			} catch (error) {
				note.textContent = error.message;
			}
		};
		text.addEventListener("keydown", (event) => {
			if (event.key === "Enter" && event.ctrlKey) save();
			else if (event.key === "Escape") now = view();
			else return;
			event.preventDefault();
			event.stopPropagation();
		});
		now = undefined;
		content.replaceChildren(h("div.bar", null, button("Save", save, { class: "primary", title: "Ctrl+Enter" }), button("Cancel", () => (now = view())), note), text);
		text.focus();
		text.setSelectionRange(0, 0);
	}
	scope.every(500, () => {
		// What is being read or selected does not change under the reader's hands.
		if (!now || now.drawn === current() || String(getSelection())) return;
		now.drawn = current();
		now.refresh();
	});
	return content;
}

function clean({ apiVersion, kind, metadata: { managedFields, ...meta }, ...rest }) {
	return { apiVersion, kind, metadata: meta, ...rest };
}
