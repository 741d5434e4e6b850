// How values of the API are read and told. Where kubectl has a way of telling, it is the same here.

const SUFFIX = {
	n: 1e-9, u: 1e-6, m: 1e-3, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18,
	Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50, Ei: 2 ** 60,
};

// A quantity as a number, of cores or bytes.
function quantity(text) {
	const match = /^([+-]?[\d.]+(?:[eE][+-]?\d+)?)([a-zA-Z]*)$/.exec(text ?? "");
	if (!match) return 0;
	return Number(match[1]) * (match[2] ? SUFFIX[match[2]] ?? 1 : 1);
}

function bytes(number) {
	for (const unit of ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"]) {
		const size = SUFFIX[unit];
		if (number >= size) return `${(number / size).toFixed(number / size < 10 ? 1 : 0)} ${unit}B`;
	}
	return `${Math.round(number)} B`;
}

function cores(number) {
	if (number === 0) return "0";
	return number < 1 ? `${Math.max(1, Math.round(number * 1000))}m` : number.toFixed(number < 10 ? 2 : 1);
}

function percent(part, whole) {
	return whole ? `${Math.round((100 * part) / whole)}%` : "";
}

// How long ago, in kubectl's way.
function age(time) {
	if (!time) return "";
	return span((Date.now() - new Date(time)) / 1000);
}

function span(seconds) {
	const s = Math.max(0, Math.floor(seconds));
	if (s < 120) return `${s}s`;
	const m = Math.floor(s / 60);
	if (m < 10) return s % 60 ? `${m}m${s % 60}s` : `${m}m`;
	if (m < 180) return `${m}m`;
	const hours = Math.floor(m / 60);
	if (hours < 8) return m % 60 ? `${hours}h${m % 60}m` : `${hours}h`;
	if (hours < 48) return `${hours}h`;
	const d = Math.floor(hours / 24);
	if (d < 8) return hours % 24 ? `${d}d${hours % 24}h` : `${d}d`;
	if (d < 730) return `${d}d`;
	return `${Math.floor(d / 365)}y`;
}

// A duration in microseconds.
function micro(us) {
	if (us < 1000) return `${us} µs`;
	if (us < 1e5) return `${(us / 1e3).toFixed(us < 1e4 ? 2 : 1)} ms`;
	if (us < 1e6) return `${Math.round(us / 1e3)} ms`;
	return `${(us / 1e6).toFixed(us < 1e7 ? 2 : 1)} s`;
}

function clock(time) {
	return time ? new Date(time).toLocaleTimeString([], { hour12: false }) : "";
}

function condition(object, type) {
	return object.status?.conditions?.find((c) => c.type === type);
}

// The STATUS of a pod.
function podStatus(pod) {
	const status = pod.status ?? {};
	let reason = status.reason || status.phase || "Unknown";
	const init = pod.spec?.initContainers ?? [];
	let starting = false;
	for (const [index, container] of (status.initContainerStatuses ?? []).entries()) {
		const { terminated, waiting } = container.state ?? {};
		if (terminated && terminated.exitCode === 0) continue;
		const always = init.find((c) => c.name === container.name)?.restartPolicy === "Always";
		if (always && container.started) continue;
		if (terminated) reason = `Init:${ending(terminated)}`;
		else if (waiting?.reason && waiting.reason !== "PodInitializing") reason = `Init:${waiting.reason}`;
		else reason = `Init:${index}/${init.length}`;
		starting = true;
		break;
	}
	if (!starting) {
		let running = false;
		for (const container of (status.containerStatuses ?? []).toReversed()) {
			const { terminated, waiting } = container.state ?? {};
			if (waiting?.reason) reason = waiting.reason;
			else if (terminated) reason = ending(terminated);
			else if (container.ready && container.state?.running) running = true;
		}
		if (reason === "Completed" && running) {
			reason = condition(pod, "Ready")?.status === "True" ? "Running" : "NotReady";
		}
	}
	const over = status.phase === "Succeeded" || status.phase === "Failed";
	if (pod.metadata.deletionTimestamp && !over) return status.reason === "NodeLost" ? "Unknown" : "Terminating";
	return reason;
}

function ending(terminated) {
	if (terminated.reason) return terminated.reason;
	return terminated.signal ? `Signal:${terminated.signal}` : `ExitCode:${terminated.exitCode}`;
}

function podReady(pod) {
	const all = pod.status?.containerStatuses ?? [];
	const sidecars = (pod.spec?.initContainers ?? []).filter((c) => c.restartPolicy === "Always");
	const names = new Set(sidecars.map((c) => c.name));
	const more = (pod.status?.initContainerStatuses ?? []).filter((c) => names.has(c.name) && c.ready);
	return [all.filter((c) => c.ready).length + more.length, (pod.spec?.containers ?? []).length + sidecars.length];
}

function podRestarts(pod) {
	return (pod.status?.containerStatuses ?? []).reduce((sum, c) => sum + (c.restartCount ?? 0), 0);
}

// ok, wait, bad or done: how a pod's status is to be taken.
function podLevel(pod) {
	const status = podStatus(pod);
	if (status === "Running") {
		const [ready, all] = podReady(pod);
		return ready === all ? "ok" : "wait";
	}
	if (status === "Completed" || status === "Succeeded") return "done";
	if (/^(Pending|ContainerCreating|PodInitializing|Terminating|SchedulingGated|NotReady|Init:\d+\/\d+)$/.test(status)) {
		return condition(pod, "PodScheduled")?.reason === "Unschedulable" ? "bad" : "wait";
	}
	return "bad";
}

function nodeStatus(node) {
	const ready = condition(node, "Ready");
	const text = ready?.status === "True" ? "Ready" : ready?.status === "Unknown" || !ready ? "Unknown" : "NotReady";
	return node.spec?.unschedulable ? `${text}, cordoned` : text;
}

function nodeLevel(node) {
	if (condition(node, "Ready")?.status !== "True") return "bad";
	const pressed = node.status.conditions.some((c) => /Pressure$|NetworkUnavailable/.test(c.type) && c.status === "True");
	return node.spec?.unschedulable || pressed ? "wait" : "ok";
}

function nodeRoles(node) {
	const prefix = "node-role.kubernetes.io/";
	const roles = Object.keys(node.metadata.labels ?? {}).filter((l) => l.startsWith(prefix)).map((l) => l.slice(prefix.length));
	return roles.join(", ");
}

// [ready, wanted] of anything that makes pods.
function workloadReady(object) {
	const { kind, spec = {}, status = {} } = object;
	switch (kind) {
		case "DaemonSet":
			return [status.numberReady ?? 0, status.desiredNumberScheduled ?? 0];
		case "Job":
			return [status.succeeded ?? 0, spec.completions ?? spec.parallelism ?? 1];
		case "CronJob":
			return [status.active?.length ?? 0, null];
		default:
			return [status.readyReplicas ?? 0, spec.replicas ?? 1];
	}
}

function workloadStatus(object) {
	const [ready, wanted] = workloadReady(object);
	switch (object.kind) {
		case "Job":
			for (const type of ["Complete", "Failed", "Suspended"]) {
				if (condition(object, type)?.status === "True") return type;
			}
			return object.status?.active ? "Running" : "Waiting";
		case "CronJob":
			return object.spec.suspend ? "Suspended" : ready ? "Running" : "Waiting";
		default: {
			if (object.metadata.deletionTimestamp) return "Terminating";
			if (object.spec.paused) return "Paused";
			if (condition(object, "Progressing")?.reason === "ProgressDeadlineExceeded") return "Stuck";
			const { updatedReplicas = 0, updatedNumberScheduled = updatedReplicas } = object.status ?? {};
			const seen = (object.status?.observedGeneration ?? 0) >= (object.metadata.generation ?? 0);
			if (!seen || (wanted && updatedNumberScheduled < wanted)) return "Updating";
			return ready >= wanted ? (wanted ? "Ready" : "Scaled to 0") : "Not ready";
		}
	}
}

const WORKLOAD_LEVEL = {
	Ready: "ok", Complete: "done", Running: "ok", Waiting: "done", "Scaled to 0": "done", Suspended: "done",
	Updating: "wait", "Not ready": "wait", Paused: "wait", Terminating: "wait", Failed: "bad", Stuck: "bad",
};

function images(object) {
	const template = object.spec?.jobTemplate?.spec.template ?? object.spec?.template ?? object;
	return [...new Set((template.spec?.containers ?? []).map((c) => c.image))];
}

// Whether a LabelSelector selects these labels.
function selects(selector, labels = {}) {
	if (!selector) return false;
	for (const [key, value] of Object.entries(selector.matchLabels ?? {})) if (labels[key] !== value) return false;
	for (const { key, operator, values = [] } of selector.matchExpressions ?? []) {
		const has = key in labels;
		const met = { In: has && values.includes(labels[key]), NotIn: !values.includes(labels[key]), Exists: has, DoesNotExist: !has };
		if (!met[operator]) return false;
	}
	return true;
}

const keyOf = (object) =>
	object.metadata.namespace ? `${object.metadata.namespace}/${object.metadata.name}` : object.metadata.name;

const eventTime = (event) =>
	event.series?.lastObservedTime ?? event.lastTimestamp ?? event.eventTime ?? event.firstTimestamp ?? event.metadata.creationTimestamp;

const eventCount = (event) => event.series?.count ?? event.count ?? 1;
