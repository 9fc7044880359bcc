package main

import "github.com/fleetgate/fleetgate/xds"

// The types that -o json and -o yaml print: named, versioned, and held by golden files in testdata. Fields are only ever added.

type gatewayList struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"` // GatewayList
	Items      []gatewayView `json:"items"`
}

type routeList struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"` // RouteList
	Items      []routeView `json:"items"`
}

type proxyList struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"` // ProxyList
	Items      []xds.Report `json:"items"`
}

type replicaList struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"` // ReplicaList
	Items      []replicaView `json:"items"`
}

// statusReport is what `fleetgate status` prints: the whole on one screen, and what is wrong.
type statusReport struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"` // Status
	Healthy    bool     `json:"healthy"`
	Leader     string   `json:"leader"`
	Index      uint64   `json:"index"`
	Replicas   counted  `json:"replicas"`
	Gateways   counted  `json:"gateways"`
	Routes     counted  `json:"routes"`
	Proxies    counted  `json:"proxies"`
	Findings   []string `json:"findings"`
}

// counted is how many of how many are well: live, programmed, accepted, up to date.
type counted struct {
	Good  int `json:"good"`
	Total int `json:"total"`
}

type versionInfo struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // Version
	Version    string `json:"version"`
	Go         string `json:"go"`
	Envoy      string `json:"envoy"` // the version that the configuration is made for
}
