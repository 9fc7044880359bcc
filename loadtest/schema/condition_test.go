package schema

import (
	"fmt"
	"regexp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	reasonRule = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$`)
	typeRule   = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$`)
)

// valid finds what an API server would refuse in conditions.
func valid(conditions []metav1.Condition) error {
	seen := map[string]bool{}
	for _, c := range conditions {
		switch {
		case seen[c.Type]:
			return fmt.Errorf("condition %s is there twice", c.Type)
		case !typeRule.MatchString(c.Type) || !reasonRule.MatchString(c.Reason) || len(c.Reason) > 1024:
			return fmt.Errorf("condition %q has reason %q: an API server refuses one of them", c.Type, c.Reason)
		case len(c.Message) > 32768 || len(conditions) > 8:
			return fmt.Errorf("%d conditions, the message of %s has %d bytes: an API server refuses that", len(conditions), c.Type, len(c.Message))
		}
		seen[c.Type] = true
	}
	return nil
}
